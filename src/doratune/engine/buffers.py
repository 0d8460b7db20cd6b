"""Reused memory: one buffer for block after block of rows, and cached constant vectors."""

from __future__ import annotations

import functools
from collections.abc import Iterator

import torch
from torch import Tensor


def buffered_rows(tensor: Tensor, dtype: torch.dtype, elements: int) -> Iterator[tuple[slice, Tensor]]:
    """Split a tensor into blocks of rows, each with a buffer of its shape for the caller to fill.

    Args:
        tensor: (N, ...), any dtype.
        dtype: The buffer's dtype.
        elements: The buffer's largest size in elements; it always holds at least one row.

    Yields:
        A slice of rows and its buffer, whose memory the next slice reuses.
    """
    count = max(1, min(tensor.shape[0], elements // max(1, tensor.shape[1:].numel())))
    buffer = torch.empty(count, *tensor.shape[1:], dtype=dtype, device=tensor.device)
    for start in range(0, tensor.shape[0], count):
        rows = slice(start, min(start + count, tensor.shape[0]))
        yield rows, buffer[: rows.stop - rows.start]


def constant_like(tensor: Tensor, value: float) -> Tensor:
    """A vector of one value; do not write to it.

    Args:
        tensor: On a CPU, (n,), any dtype; the result has its size and dtype.
        value: Any number.
    """
    # A fake tensor needs a fake result, which must not be cached.
    if type(tensor) is not Tensor:
        return torch.full_like(tensor, value)
    return _constant(value, tensor.shape[0], tensor.dtype)


@functools.lru_cache(maxsize=64)
def _constant(value: float, size: int, dtype: torch.dtype) -> Tensor:
    with torch.inference_mode(False):
        return torch.full((size,), value, dtype=dtype, device="cpu")
