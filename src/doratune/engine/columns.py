"""Scaling columns and summing products over rows, without wide copies of the whole tensor.

PyTorch's CPU kernels are slow where dtypes mix (bfloat16 by float32 takes many times as long as bfloat16 by
bfloat16), and wide copies of a whole activation go out to memory and back. So on a CPU a tensor narrower than
``g`` is widened a few rows at a time, in a buffer that stays in the cache: one rounding, as with a fused
kernel. Elsewhere a mixed product is one kernel already.

A tensor is (N, d), or (N, d, L) where other dimensions follow the columns', as in an image.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

BUFFER_ELEMENTS = 1 << 18
"""Elements of the wide buffer: 1 MiB in float32, which a core's second-level cache holds."""


def scale_columns(z: Tensor, g: Tensor, out: Tensor, bias: Tensor | None = None) -> Tensor:
    """``z ⊙ g + bias``, rounded to z's dtype, into ``out``.

    Args:
        z: (N, d) or (N, d, L), any floating dtype.
        g: (d,), float32 or float64.
        out: Of z's shape and dtype; may be z itself.
        bias: (d,), any floating dtype, or None for 0.

    Returns:
        ``out``.
    """
    g, bias = _across(g, z), None if bias is None else _across(bias.to(g.dtype), z)
    if not _mixes(z, g):
        torch.mul(z, g, out=out)
        return out if bias is None else out.add_(bias)
    for rows, wide in _wide_rows(z, g.dtype):
        wide.copy_(z[rows]).mul_(g)
        if bias is not None:
            wide += bias
        out[rows].copy_(wide)
    return out


def column_dots(a: Tensor, b: Tensor, dtype: torch.dtype, bias: Tensor | None = None) -> Tensor:
    """Σ(a ⊙ (b - bias)) over rows, in ``dtype``: float16 products would overflow under loss scaling.

    Args:
        a: (N, d) or (N, d, L), any floating dtype.
        b: Of a's shape and dtype.
        dtype: Of the sums, at least as wide.
        bias: (d,), any floating dtype, or None for 0.

    Returns:
        (d,) in ``dtype``.
    """
    sums = torch.zeros(a.shape[1], dtype=dtype, device=a.device)
    bias = None if bias is None else _across(bias.to(dtype), a)
    for rows, wide in _wide_rows(a, dtype):
        wide.copy_(b[rows])
        if bias is not None:
            wide -= bias
        sums += column_sums(wide.mul_(a[rows].to(dtype)), dtype)
    return sums


def scaled_and_dots(dY: Tensor, y: Tensor, g: Tensor, bias: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """``dY ⊙ g`` and Σ(dY ⊙ (y - bias)) over rows, dY and y being read once.

    Args:
        dY: (N, d) or (N, d, L), any floating dtype.
        y: Of dY's shape and dtype.
        g: (d,), float32 or float64.
        bias: (d,), any floating dtype, or None for 0.

    Returns:
        The first in dY's shape and dtype, contiguous, and (d,) in g's dtype.
    """
    scaled = torch.empty_like(dY, memory_format=torch.contiguous_format)
    if not _mixes(dY, g):
        return torch.mul(dY, _across(g, dY), out=scaled), column_dots(dY, y, g.dtype, bias)
    sums = torch.zeros_like(g)
    bias = None if bias is None else _across(bias.to(g.dtype), dY)
    other = _buffer(dY, g.dtype)
    for rows, wide in _wide_rows(dY, g.dtype):
        products = other[: wide.shape[0]].copy_(y[rows])
        if bias is not None:
            products -= bias
        sums += column_sums(products.mul_(wide.copy_(dY[rows])), g.dtype)
        scaled[rows].copy_(wide.mul_(_across(g, dY)))
    return scaled, sums


def column_sums(tensor: Tensor, dtype: torch.dtype) -> Tensor:
    """The sum over all but the columns.

    Args:
        tensor: (N, d) or (N, d, L), any floating dtype.
        dtype: Of the sums.

    Returns:
        (d,) in ``dtype``.
    """
    return tensor.sum(dim=0 if tensor.ndim == 2 else (0, 2), dtype=dtype)


def _mixes(tensor: Tensor, g: Tensor) -> bool:
    return tensor.device.type == "cpu" and tensor.dtype != g.dtype


def _across(g: Tensor, tensor: Tensor) -> Tensor:
    """``g`` along the columns of ``tensor``."""
    return g if tensor.ndim == 2 else g[:, None]


def _buffer(tensor: Tensor, dtype: torch.dtype) -> Tensor:
    # Elsewhere than on a CPU a launch costs more, and there is no cache to stay in.
    elements = BUFFER_ELEMENTS if tensor.device.type == "cpu" else 16 * BUFFER_ELEMENTS
    rows = max(1, min(tensor.shape[0], elements // max(1, tensor.shape[1:].numel())))
    return torch.empty(rows, *tensor.shape[1:], dtype=dtype, device=tensor.device)


def _wide_rows(tensor: Tensor, dtype: torch.dtype) -> Iterator[tuple[slice, Tensor]]:
    """Slices of rows, each with a buffer of their shape; the next slice reuses the buffer."""
    buffer = _buffer(tensor, dtype)
    for start in range(0, tensor.shape[0], buffer.shape[0]):
        rows = slice(start, min(start + buffer.shape[0], tensor.shape[0]))
        yield rows, buffer[: rows.stop - rows.start]
