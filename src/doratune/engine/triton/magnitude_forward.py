"""y = g ⊙ (z + h Bᵀ) + b with g = m / n, in one pass over z."""

# pyright: reportArgumentType=false, reportCallIssue=false, reportGeneralTypeIssues=false
# pyright: reportPossiblyUnboundVariable=false

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from doratune.engine.triton.device_functions import over_norm
from doratune.engine.triton.select import launching
from doratune.engine.triton.sizes import block_of, blocks

ROWS, COLUMNS = 64, 128
"""The size of a block of z."""
STEPS = 4
"""Blocks of rows per program, which reads its part of B once for all of them."""
RANKS = 64
"""The highest rank: above it, a separate product is faster."""


def add_and_scale_(z: Tensor, h: Tensor, B: Tensor, m: Tensor, norm: Tensor, bias: Tensor | None) -> Tensor:
    """Replace z by ``(m / norm) ⊙ (z + h Bᵀ) + bias``, with 0 for m / norm where the norm is 0.

    Computed in float32, with B rounded to h's dtype. Dtypes have at most 32 bits; z, h and B are contiguous.

    Args:
        z: (N, d_out).
        h: (N, r), z's dtype; r is at most ``RANKS``.
        B: (d_out, r), any floating dtype.
        m: (d_out,), any floating dtype.
        norm: (d_out,), float32.
        bias: (d_out,), any floating dtype, or None.

    Returns:
        z.
    """
    _launch(z, z, h, B, m, norm, bias, rank=h.shape[1])
    return z


def scale(z: Tensor, m: Tensor, norm: Tensor | None, out: Tensor, bias: Tensor | None) -> Tensor:
    """Write ``(m / norm) ⊙ z + bias``, computed in float32, into ``out``.

    Dtypes have at most 32 bits; z and ``out`` are contiguous.

    Args:
        z: (N, d).
        m: (d,), any floating dtype.
        norm: (d,), float32; where it is 0, so is m / norm. None for 1.
        out: Of z's shape and dtype; may be z itself.
        bias: (d,), any floating dtype, or None.

    Returns:
        ``out``.
    """
    _launch(z, out, None, None, m, norm, bias, rank=0)
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
    with launching(z.device):
        _add_and_scale[(blocks(columns, COLUMNS), blocks(rows, ROWS * STEPS))](
            z,
            out,
            h,
            B,
            m.contiguous(),
            None if norm is None else norm.contiguous(),
            None if bias is None else bias.contiguous(),
            rows,
            columns,
            rank,
            UPDATE=h is not None,
            NORM=norm is not None,
            BIAS=bias is not None,
            ROWS=ROWS,
            COLUMNS=COLUMNS,
            STEPS=STEPS,
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
    STEPS: tl.constexpr,
    RANKS: tl.constexpr,
):
    columns = tl.program_id(0) * COLUMNS + tl.arange(0, COLUMNS)
    column_there = columns < n_columns
    gain = tl.load(m + columns, mask=column_there, other=0.0).to(tl.float32)
    if NORM:
        gain = over_norm(gain, norm, columns, column_there)
    if BIAS:
        shift = tl.load(bias + columns, mask=column_there, other=0.0).to(tl.float32)
    if UPDATE:
        ranks = tl.arange(0, RANKS)
        rank_there = ranks < rank
        update = tl.load(
            B + columns[None, :] * rank + ranks[:, None],
            mask=rank_there[:, None] & column_there[None, :],
            other=0.0,
        ).to(h.dtype.element_ty)
    for step in tl.static_range(STEPS):  # unrolled, so that the next block's loads are in flight
        # A block's start may exceed 32 bits; offsets inside it do not.
        first = (tl.program_id(1) * STEPS + step) * ROWS
        rows = tl.arange(0, ROWS)
        row_there = rows < n_rows - first
        there = row_there[:, None] & column_there[None, :]
        begin = first.to(tl.int64) * n_columns
        at = rows[:, None] * n_columns + columns[None, :]
        total = tl.load(z + begin + at, mask=there, other=0.0).to(tl.float32)
        if UPDATE:
            h_part = tl.load(
                h + first.to(tl.int64) * rank + (rows[:, None] * rank + ranks[None, :]),
                mask=row_there[:, None] & rank_there[None, :],
                other=0.0,
            )
            total = tl.dot(h_part, update, total, input_precision="ieee")
        total *= gain[None, :]
        if BIAS:
            total += shift[None, :]
        tl.store(out + begin + at, total.to(out.dtype.element_ty), mask=there)
