"""Vectors of one number, which kernels want to be given and never write to."""

from __future__ import annotations

import functools

import torch
from torch import Tensor


def constant_like(tensor: Tensor, value: float) -> Tensor:
    """``value`` in each element, not to be written to.

    Args:
        tensor: On a CPU, (n,), any dtype; the result has its size and dtype.
        value: Any number.
    """
    # A fake tensor must not be answered with a real one, nor be remembered.
    if type(tensor) is not Tensor:
        return torch.full_like(tensor, value)
    return _made(value, tensor.shape[0], tensor.dtype)


@functools.lru_cache(maxsize=64)
def _made(value: float, size: int, dtype: torch.dtype) -> Tensor:
    with torch.inference_mode(False):
        return torch.full((size,), value, dtype=dtype, device="cpu")
