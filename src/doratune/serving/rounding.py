"""Weights that have moved at random by as much as rounding to a type moves them."""

from __future__ import annotations

import zlib

import torch
from torch import Tensor

ARITHMETIC = 4
"""How many roundings to float32 stand for the other order of the sums in a merged layer."""


def moved(values: Tensor, dtype: torch.dtype | None, name: str) -> Tensor:
    """Float32 values, moved at random: by half a unit of ``dtype`` at most, and always by some of float32's.

    Args:
        values: The values.
        dtype: The type that they were rounded to; None: they were not.
        name: The same name moves them in the same way.
    """
    kind = torch.finfo(dtype or torch.float32)
    step = max(kind.eps, ARITHMETIC * torch.finfo(torch.float32).eps) / 2
    generator = torch.Generator().manual_seed(zlib.crc32(name.encode()))
    noise = torch.rand(values.shape, generator=generator).mul_(2).sub_(1)
    return noise.mul_(values.abs().clamp_(min=kind.tiny).mul_(step)).add_(values)
