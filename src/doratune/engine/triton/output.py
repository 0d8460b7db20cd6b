"""y = g ⊙ (z + h Bᵀ) + b with g = m / n, in one pass over z."""

# pyright: reportArgumentType=false, reportCallIssue=false, reportPossiblyUnboundVariable=false

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from doratune.engine.triton.sizes import block_of, blocks

ROWS, COLUMNS = 64, 128
"""Of z, in one program."""
RANKS = 64
"""Columns of h and B in one product."""


def add_and_scale_(z: Tensor, h: Tensor, B: Tensor, m: Tensor, norm: Tensor, bias: Tensor | None) -> Tensor:
    """``(m / norm) ⊙ (z + h Bᵀ) + bias`` in place of z, 0 for m / norm where the norm is 0.

    Computed in float32, with B rounded to h's dtype. All of at most 32 bits, contiguous.

    Args:
        z: (N, d_out).
        h: (N, r), z's dtype.
        B: (d_out, r), any floating dtype.
        m: (d_out,), any floating dtype.
        norm: (d_out,), float32.
        bias: (d_out,), any floating dtype, or None.

    Returns:
        z.
    """
    _launch(z, z, h, B, m, norm, bias, rank=h.shape[1])
    return z


def scale(z: Tensor, g: Tensor, out: Tensor, bias: Tensor | None) -> Tensor:
    """``g ⊙ z + bias`` into ``out``, computed in float32. All of at most 32 bits, contiguous.

    Args:
        z: (N, d).
        g: (d,), float32.
        out: Of z's shape and dtype; may be z itself.
        bias: (d,), any floating dtype, or None.

    Returns:
        ``out``.
    """
    _launch(z, out, None, None, g, None, bias, rank=0)
    return out


def _launch(
    z: Tensor,
    out: Tensor,
    h: Tensor | None,
    B: Tensor | None,
    m: Tensor,
    norm: Tensor | None,
    bias: Tensor | None,
    *,
    rank: int,
) -> None:
    rows, columns = z.shape
    _add_and_scale[(blocks(columns, COLUMNS) * blocks(rows, ROWS),)](
        z,
        out,
        h,
        B,
        m,
        norm,
        bias,
        rows,
        columns,
        rank,
        UPDATE=h is not None,
        NORM=norm is not None,
        BIAS=bias is not None,
        ROWS=ROWS,
        COLUMNS=COLUMNS,
        RANKS=block_of(rank, at_most=RANKS),
    )


@triton.jit
def _add_and_scale(
    z,
    out,
    h,
    B,
    m,
    norm,
    bias,
    n_rows,
    n_columns,
    rank,
    UPDATE: tl.constexpr,
    NORM: tl.constexpr,
    BIAS: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    RANKS: tl.constexpr,
):
    across = tl.cdiv(n_columns, COLUMNS)
    rows = ((tl.program_id(0) // across) * ROWS + tl.arange(0, ROWS)).to(tl.int64)
    columns = (tl.program_id(0) % across) * COLUMNS + tl.arange(0, COLUMNS)
    row_there, column_there = rows < n_rows, columns < n_columns
    there = row_there[:, None] & column_there[None, :]
    at = rows[:, None] * n_columns + columns[None, :]
    total = tl.load(z + at, mask=there, other=0.0).to(tl.float32)
    if UPDATE:
        for start in range(0, rank, RANKS):
            ranks = start + tl.arange(0, RANKS)
            rank_there = ranks < rank
            h_part = tl.load(
                h + rows[:, None] * rank + ranks[None, :],
                mask=row_there[:, None] & rank_there[None, :],
                other=0.0,
            )
            B_part = tl.load(
                B + columns[None, :] * rank + ranks[:, None],
                mask=rank_there[:, None] & column_there[None, :],
                other=0.0,
            )
            total = tl.dot(h_part, B_part.to(h_part.dtype), total, input_precision="ieee")
    gain = tl.load(m + columns, mask=column_there, other=0.0).to(tl.float32)
    if NORM:
        n = tl.load(norm + columns, mask=column_there, other=1.0)
        gain = tl.where(n == 0.0, 0.0, gain / tl.where(n == 0.0, 1.0, n))
    total *= gain[None, :]
    if BIAS:
        total += tl.load(bias + columns, mask=column_there, other=0.0).to(tl.float32)[None, :]
    tl.store(out + at, total.to(out.dtype.element_ty), mask=there)
