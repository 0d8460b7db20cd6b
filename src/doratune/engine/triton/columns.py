"""dZ = g ⊙ dY and dm = Σ(dY ⊙ z) / n over rows, with g = m / n, in one pass over dY and z or y."""

# pyright: reportArgumentType=false, reportCallIssue=false, reportPossiblyUnboundVariable=false

from __future__ import annotations

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from doratune.engine.triton.sizes import blocks

ROWS, COLUMNS = 32, 128
"""Of dY at a time."""
STEPS = 4
"""Times that many rows, in one program."""
DEPTH = 64
"""Columns of x and W at a time, where z is computed again."""


class Source(NamedTuple):
    """What z = x Wᵀ + h Bᵀ is made of. All of at most 32 bits; W of any strides, the others contiguous.

    Attributes:
        x: (N, d_in).
        W: (d_out, d_in), any floating dtype.
        h: (N, r), x's dtype.
        B: (d_out, r), any floating dtype.
    """

    x: Tensor
    W: Tensor
    h: Tensor
    B: Tensor


def gradients_from_z(dY: Tensor, z: Tensor, m: Tensor, norm: Tensor) -> tuple[Tensor, Tensor]:
    """The gradients of z and m from z. All of at most 32 bits, contiguous.

    Args:
        dY: (N, d).
        z: (N, d), dY's dtype.
        m: (d,), any floating dtype.
        norm: (d,), float32; where it is 0, so are g and both gradients.

    Returns:
        (N, d) in dY's dtype, and (d,) in float32.
    """
    return _gradients(dY, z, m, norm, None, None, divisor=0.0)


def gradients_from_y(
    dY: Tensor,
    y: Tensor,
    m: Tensor,
    norm: Tensor,
    bias: Tensor | None,
    source: Source | None,
    smallest: float,
) -> tuple[Tensor, Tensor]:
    """The same from y = g ⊙ z + bias.

    Args:
        dY: (N, d).
        y: (N, d), dY's dtype.
        m: (d,), any floating dtype.
        norm: (d,), float32.
        bias: (d,), any floating dtype, or None.
        source: Gives z itself in the columns where |g| is below ``smallest``; None if there are none.
        smallest: See ``source``.

    Returns:
        (N, d) in dY's dtype, and (d,) in float32.
    """
    return _gradients(dY, y, m, norm, bias, source, divisor=smallest)


def _gradients(
    dY: Tensor,
    y: Tensor,
    m: Tensor,
    norm: Tensor,
    bias: Tensor | None,
    source: Source | None,
    *,
    divisor: float,
) -> tuple[Tensor, Tensor]:
    rows, columns = dY.shape
    dZ = torch.empty_like(dY)
    parts = blocks(rows, ROWS * STEPS)
    dots = norm.new_empty(parts, columns)
    x, W, h, B = source or (None, None, None, None)
    _scaling_gradients[(blocks(columns, COLUMNS), parts)](
        dY,
        y,
        m,
        norm,
        bias,
        dZ,
        dots,
        x,
        W,
        h,
        B,
        rows,
        columns,
        0 if x is None else x.shape[1],
        0 if h is None else h.shape[1],
        0 if W is None else W.stride(0),
        0 if W is None else W.stride(1),
        SMALLEST=divisor,
        BIAS=bias is not None,
        SOURCE=source is not None,
        ROWS=ROWS,
        COLUMNS=COLUMNS,
        STEPS=STEPS,
        DEPTH=DEPTH,
        num_warps=8,
    )
    return dZ, dots.sum(dim=0)


@triton.jit
def _scaling_gradients(
    dY,
    y,
    m,
    norm,
    bias,
    dZ,
    dots,
    x,
    W,
    h,
    B,
    n_rows,
    n_columns,
    d_in,
    rank,
    W_row,
    W_column,
    SMALLEST: tl.constexpr,
    BIAS: tl.constexpr,
    SOURCE: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    STEPS: tl.constexpr,
    DEPTH: tl.constexpr,
):
    columns = tl.program_id(0) * COLUMNS + tl.arange(0, COLUMNS)
    column_there = columns < n_columns
    n = tl.load(norm + columns, mask=column_there, other=1.0)
    inverse_n = tl.where(n == 0.0, 0.0, 1.0 / tl.where(n == 0.0, 1.0, n))
    gain = tl.load(m + columns, mask=column_there, other=1.0).to(tl.float32) * inverse_n
    # y holds g ⊙ z + b where SMALLEST is positive, else z.
    is_small = tl.abs(gain) < SMALLEST
    to_z = (
        tl.where(is_small, 0.0, 1.0 / tl.where(is_small, 1.0, gain)) if SMALLEST > 0 else inverse_n * 0 + 1.0
    )
    if BIAS:
        shift = tl.load(bias + columns, mask=column_there, other=0.0).to(tl.float32)
    if SOURCE:
        some_small = tl.max((is_small & column_there).to(tl.int32), axis=0) != 0
    total = tl.zeros((ROWS, COLUMNS), tl.float32)
    for step in range(STEPS):
        rows = ((tl.program_id(1) * STEPS + step) * ROWS + tl.arange(0, ROWS)).to(tl.int64)
        row_there = rows < n_rows
        there = row_there[:, None] & column_there[None, :]
        at = rows[:, None] * n_columns + columns[None, :]
        gradients = tl.load(dY + at, mask=there, other=0.0).to(tl.float32)
        tl.store(dZ + at, (gradients * gain[None, :]).to(dZ.dtype.element_ty), mask=there)
        z = tl.load(y + at, mask=there, other=0.0).to(tl.float32)
        if BIAS:
            z -= shift[None, :]
        z *= to_z[None, :]
        if SOURCE:  # noqa: SIM102 - known when compiled, the other when run
            if some_small:
                true_z = tl.zeros((ROWS, COLUMNS), tl.float32)
                for start in range(0, d_in, DEPTH):
                    places = start + tl.arange(0, DEPTH)
                    place_there = places < d_in
                    x_part = tl.load(
                        x + rows[:, None] * d_in + places[None, :],
                        mask=row_there[:, None] & place_there[None, :],
                        other=0.0,
                    )
                    W_part = tl.load(
                        W + columns.to(tl.int64)[None, :] * W_row + places.to(tl.int64)[:, None] * W_column,
                        mask=place_there[:, None] & column_there[None, :],
                        other=0.0,
                    )
                    true_z = tl.dot(x_part, W_part.to(x_part.dtype), true_z, input_precision="ieee")
                for start in range(0, rank, DEPTH):
                    ranks = start + tl.arange(0, DEPTH)
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
                    true_z = tl.dot(h_part, B_part.to(h_part.dtype), true_z, input_precision="ieee")
                z = tl.where(is_small[None, :], true_z, z)
        total += gradients * z
    sums = tl.sum(total, axis=0) * inverse_n
    tl.store(dots + tl.program_id(1) * n_columns + columns, sums, mask=column_there)
