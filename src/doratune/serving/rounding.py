"""Weights that have moved at random by as much as rounding to a type moves them."""

from __future__ import annotations

import zlib

import torch
from torch import Tensor

ALLOWED = 4.0
"""How many times as far, on average, a written model may be from base and adapter as it is from itself when
its weights move by a rounding. On the tests' models the ratio is below 1. The largest difference does not
decide: where experts are chosen, a rounding can change the choice."""
PART = 1 << 18
"""Elements that are moved at a time."""
ARITHMETIC = 4
"""How many roundings to float32 stand for the other order of the sums in a merged layer."""


def moved(values: Tensor, dtype: torch.dtype | None, name: str) -> Tensor:
    """Values in float32, moved at random: by half a unit of ``dtype`` at most, and by some of float32's.

    Args:
        values: The values, of any type; they stay as they are.
        dtype: The type that they were rounded to; None: they were not.
        name: The same name moves them in the same way.
    """
    kind = torch.finfo(dtype or torch.float32)
    step = max(kind.eps, ARITHMETIC * torch.finfo(torch.float32).eps) / 2
    generator = torch.Generator().manual_seed(zlib.crc32(name.encode()))
    result = torch.empty(values.shape)
    for new, old in zip(result.view(-1).split(PART), values.reshape(-1).split(PART), strict=True):
        noise = torch.rand(old.shape, generator=generator).mul_(2).sub_(1)
        exact = old.float()
        torch.addcmul(exact, noise, exact.abs().clamp_(min=kind.tiny), value=step, out=new)
    return result
