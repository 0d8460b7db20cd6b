"""The tensors of a case: the same for every provider and in every process."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from doratune.records.bench import Case, DType

SCALING = 2.0
"""LoRA's s, as with alpha = 2r."""

DTYPES: dict[DType, torch.dtype] = {"bfloat16": torch.bfloat16, "float32": torch.float32}


@dataclass(frozen=True)
class LayerData:
    """The tensors of one case.

    The case's dtype holds every value exactly, so adapters in that dtype and in float32 are the same.

    Attributes:
        x: Input, (tokens, d_in), the case's dtype; requires a gradient.
        dy: Gradient of the output, (tokens, d_out), the case's dtype.
        W: Base weight, (d_out, d_in), the case's dtype.
        A: Down projection, (r, d_in), float32.
        B: Up projection, (d_out, r), float32; s·B·A is about half as large as W.
        m: Magnitude, (d_out,), float32; within about a quarter of the norm of W + s·B·A.
    """

    x: Tensor
    dy: Tensor
    W: Tensor
    A: Tensor
    B: Tensor
    m: Tensor


def draw_layer(case: Case, device: torch.device) -> LayerData:
    """Random tensors for a case, drawn on the CPU from a fixed seed and moved to ``device``."""
    dtype = DTYPES[case.dtype]
    generator = torch.Generator().manual_seed(0)

    def normal(rows: int, columns: int, deviation: float) -> Tensor:
        return torch.randn(rows, columns, generator=generator).mul_(deviation).to(device, dtype)

    magnitude = torch.rand(case.d_out, generator=generator).mul_(0.6).add_(0.8)
    return LayerData(
        x=normal(case.tokens, case.d_in, 1.0).requires_grad_(),
        dy=normal(case.tokens, case.d_out, 1.0),
        W=normal(case.d_out, case.d_in, case.d_in**-0.5),
        A=normal(case.rank, case.d_in, case.d_in**-0.5).float(),
        B=normal(case.d_out, case.rank, 0.25 * case.rank**-0.5).float(),
        m=magnitude.to(device, dtype).float(),
    )
