"""y = g ⊙ (z + h Bᵀ) + b in one pass over z, and g = m / n with the smallest of it."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

ROWS, COLUMNS = 64, 128
"""Of z, in one program."""
RANKS = 64
"""Columns of h and B in one product."""
GAINS = 1024
"""Elements of g at a time."""


def add_and_scale_(z: Tensor, h: Tensor, B: Tensor, g: Tensor, bias: Tensor | None) -> Tensor:
    """``g ⊙ (z + h Bᵀ) + bias`` in place of z, in float32 inside, B rounded to h's dtype.

    Args:
        z: (N, d_out), contiguous.
        h: (N, r), z's dtype, contiguous.
        B: (d_out, r), any floating dtype of at most 32 bits, contiguous.
        g: (d_out,), float32.
        bias: (d_out,), likewise as B, or None.

    Returns:
        z.
    """
    rows, columns = z.shape
    rank = h.shape[1]
    grid = (triton.cdiv(columns, COLUMNS) * triton.cdiv(rows, ROWS),)
    _add_and_scale[grid](
        z,
        h,
        B,
        g,
        bias,
        rows,
        columns,
        rank,
        BIAS=bias is not None,
        ROWS=ROWS,
        COLUMNS=COLUMNS,
        RANKS=max(16, min(RANKS, triton.next_power_of_2(rank))),
    )
    return z


def gain(m: Tensor, norm: Tensor) -> tuple[Tensor, Tensor]:
    """``m / norm``, 0 where the norm is 0, and the smallest magnitude in it.

    Args:
        m: (d,), any floating dtype of at most 32 bits.
        norm: (d,), float32.

    Returns:
        (d,) and (1,), float32.
    """
    g, smallest = torch.empty_like(norm), norm.new_empty(1)
    _gain[(1,)](m, norm, g, smallest, norm.shape[0], SIZE=GAINS)
    return g, smallest


@triton.jit
def _add_and_scale(
    z,
    h,
    B,
    g,
    bias,
    n_rows,
    n_columns,
    rank,
    BIAS: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    RANKS: tl.constexpr,
):
    across = tl.cdiv(n_columns, COLUMNS)
    rows = (tl.program_id(0) // across) * ROWS + tl.arange(0, ROWS)
    columns = (tl.program_id(0) % across) * COLUMNS + tl.arange(0, COLUMNS)
    row_there, column_there = rows < n_rows, columns < n_columns
    there = row_there[:, None] & column_there[None, :]
    at = rows.to(tl.int64)[:, None] * n_columns + columns[None, :]
    total = tl.load(z + at, mask=there, other=0.0).to(tl.float32)
    for start in range(0, rank, RANKS):
        ranks = start + tl.arange(0, RANKS)
        rank_there = ranks < rank
        h_part = tl.load(
            h + rows.to(tl.int64)[:, None] * rank + ranks[None, :],
            mask=row_there[:, None] & rank_there[None, :],
            other=0.0,
        )
        B_part = tl.load(
            B + columns[None, :] * rank + ranks[:, None],
            mask=rank_there[:, None] & column_there[None, :],
            other=0.0,
        )
        total = tl.dot(h_part, B_part.to(h_part.dtype), total, input_precision="ieee")
    total *= tl.load(g + columns, mask=column_there, other=0.0)[None, :]
    if BIAS:
        total += tl.load(bias + columns, mask=column_there, other=0.0).to(tl.float32)[None, :]
    tl.store(z + at, total.to(z.dtype.element_ty), mask=there)


@triton.jit
def _gain(m, norm, g, smallest, count, SIZE: tl.constexpr):
    lowest = tl.full((SIZE,), float("inf"), tl.float32)
    for start in range(0, count, SIZE):
        places = start + tl.arange(0, SIZE)
        there = places < count
        n = tl.load(norm + places, mask=there, other=1.0)
        gains = tl.load(m + places, mask=there, other=1.0).to(tl.float32) / n
        gains = tl.where(n == 0.0, 0.0, gains)
        tl.store(g + places, gains, mask=there)
        lowest = tl.minimum(lowest, tl.where(there, tl.abs(gains), float("inf")))
    tl.store(smallest, tl.min(lowest, axis=0))
