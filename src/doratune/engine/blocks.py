"""Blocks of rows, one after the other in the same memory."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor


def buffered_rows(tensor: Tensor, dtype: torch.dtype, elements: int) -> Iterator[tuple[slice, Tensor]]:
    """Slices of a tensor's rows, each with memory of their shape for the caller to fill.

    Args:
        tensor: (N, ...), any dtype.
        dtype: Of the memory.
        elements: Most elements of it, but for one row.

    Yields:
        Rows, and a tensor of their shape that the next rows will take.
    """
    count = max(1, min(tensor.shape[0], elements // max(1, tensor.shape[1:].numel())))
    buffer = torch.empty(count, *tensor.shape[1:], dtype=dtype, device=tensor.device)
    for start in range(0, tensor.shape[0], count):
        rows = slice(start, min(start + count, tensor.shape[0]))
        yield rows, buffer[: rows.stop - rows.start]
