"""The types of GGUF files in which tensors can be written, and how far each rounds."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import numpy as np
import torch
from gguf import GGML_QUANT_SIZES, GGMLQuantizationType, LlamaFileType, quantize

from doratune.errors import InputError
from doratune.serving.exporting.gguf_file import Floats

FLOATS = ("F32", "F16", "BF16")
WRITTEN = {
    "F32": LlamaFileType.ALL_F32,
    "F16": LlamaFileType.MOSTLY_F16,
    "BF16": LlamaFileType.MOSTLY_BF16,
    "Q8_0": LlamaFileType.MOSTLY_Q8_0,
}
"""The types that are written, and what ``general.file_type`` says of a file that has mostly this type."""
ROUNDING = {"F32": 2**-18, "F16": 2**-10, "BF16": 2**-8}
"""Of floats, relative to a tensor's norm; F32's is that of Gemma's norms, which are stored with 1 added."""
OF_TORCH = {torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16"}
CHUNK = 1 << 22
"""Values that are converted at a time."""


def stored_bytes(shape: Sequence[int], kind: GGMLQuantizationType) -> int:
    """The bytes of a tensor in a type."""
    block, size = GGML_QUANT_SIZES[kind]
    return math.prod(shape) // block * size


def fits(shape: Sequence[int], kind: GGMLQuantizationType) -> bool:
    """Whether a type can hold rows of this length."""
    return shape[-1] % GGML_QUANT_SIZES[kind][0] == 0


def stored_in(values: Floats, kind: GGMLQuantizationType, name: str) -> Iterator[bytes]:
    """The bytes of a tensor in a type, some rows at a time.

    Args:
        values: The values.
        kind: The type.
        name: The tensor, for the message.

    Raises:
        InputError: A value is too large for float16.
    """
    rows = values.reshape(-1, values.shape[-1])
    step = max(1, CHUNK // rows.shape[1])
    for start in range(0, len(rows), step):
        part = np.ascontiguousarray(rows[start : start + step])
        with np.errstate(over="ignore"):
            stored = quantize(part, kind)
        if kind == GGMLQuantizationType.F16 and not np.isfinite(stored).all():
            raise InputError(
                "a value is too large for F16",
                where=name,
                got=f"{np.abs(part).max():.3g}",
                expected="at most 65504",
                fix="add --dtype BF16 or --dtype F32",
            )
        yield stored.tobytes()


def largest_rounding(kind: GGMLQuantizationType, dtype: torch.dtype = torch.float32) -> float:
    """How far a tensor may be from the weight that it was made from, relative to the weight's norm.

    With b bits per weight and blocks of 32 it is some 1.3·2⁻ᵇ for normally distributed weights, and up to
    four times that for a block that one weight dominates.

    Args:
        kind: The tensor's type.
        dtype: The type that the weight is known in, which may have been rounded too.
    """
    return _rounding(kind.name) + _rounding(OF_TORCH[dtype])


def _rounding(name: str) -> float:
    if name in ROUNDING:
        return ROUNDING[name]
    block, size = GGML_QUANT_SIZES[GGMLQuantizationType[name]]
    return min(0.9, 5 * 2 ** (-8 * size / block))
