"""The floating-point type that a model is computed in."""

from __future__ import annotations

from typing import get_args

import torch

from doratune.engine.cpu_traits import cpu_traits
from doratune.errors import InputError
from doratune.settings import Dtype


def resolve_dtype(name: str, device_type: str) -> torch.dtype:
    """The dtype that ``name`` stands for on a device.

    ``auto`` is bfloat16 where the hardware multiplies bfloat16 matrices faster than float32 ones (CUDA from
    Ampere on, CPUs with AMX or AVX-512 BF16), else float32.

    Args:
        name: One of ``Dtype``.
        device_type: ``"cpu"``, ``"cuda"``, ``"mps"``, ...

    Returns:
        The torch dtype.

    Raises:
        InputError: If ``name`` is unknown, or is float16 on a CPU, where training in it overflows.
    """
    if name not in get_args(Dtype):
        known = ", ".join(get_args(Dtype))
        raise InputError("unknown dtype", where="--dtype", got=name, expected=f"one of {known}")
    if name == "float16" and device_type == "cpu":
        raise InputError(
            "float16 is not usable on a CPU",
            where="--dtype",
            got=name,
            expected="float32 or bfloat16",
            fix="leave --dtype at auto",
        )
    if name != "auto":
        return getattr(torch, name)
    return torch.bfloat16 if _has_fast_bfloat16(device_type) else torch.float32


def _has_fast_bfloat16(device_type: str) -> bool:
    if device_type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    if device_type == "cpu":
        return cpu_traits().has_bfloat16
    return False
