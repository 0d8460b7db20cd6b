"""dZ = g ⊙ dY and dm = Σ(dY ⊙ z) / n over rows, with g = m / n, in one pass over dY and z or y."""

# pyright: reportArgumentType=false, reportCallIssue=false, reportGeneralTypeIssues=false
# pyright: reportPossiblyUnboundVariable=false

from __future__ import annotations

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from doratune.engine.triton.device_functions import over_norm
from doratune.engine.triton.select import launching
from doratune.engine.triton.sizes import block_of, blocks

ROWS, COLUMNS = 32, 128
"""The size of a block of dY."""
STEPS = 4
"""Blocks of rows per program."""
ALONE_STEPS, ALONE_COLUMNS = 8, 32
"""With at most so many blocks of rows, one program takes all rows of its columns, which saves a launch."""
SUMMED_COLUMNS = 64
"""Columns of dm per program."""
DEPTH = 64
"""Columns of x and W per block, where z is recomputed."""


class Source(NamedTuple):
    """The factors of z = x Wᵀ + h Bᵀ. Dtypes have at most 32 bits; all but W are contiguous.

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


def gradients(
    dY: Tensor,
    held: Tensor,
    m: Tensor,
    norm: Tensor,
    bias: Tensor | None = None,
    source: Source | None = None,
    smallest: float = 0.0,
) -> tuple[Tensor, Tensor]:
    """The gradients of z and m. Dtypes have at most 32 bits; dY and ``held`` are contiguous.

    Args:
        dY: (N, d).
        held: z if ``smallest`` is 0, else the output y = g ⊙ z + bias; (N, d), dY's dtype.
        m: (d,), any floating dtype.
        norm: (d,), float32; where it is 0, so are g and both gradients.
        bias: The bias in y, (d,), any floating dtype, or None.
        source: The factors of z, to recompute the columns where |g| is below ``smallest``, which are few;
            None if there are no such columns.
        smallest: The smallest |g| by which y may be divided.

    Returns:
        (N, d) in dY's dtype, and (d,) in float32.
    """
    rows, columns = dY.shape
    dZ = torch.empty_like(dY)
    alone = rows <= ROWS * ALONE_STEPS
    steps = block_of(blocks(rows, ROWS), at_least=1, at_most=ALONE_STEPS) if alone else STEPS
    width = ALONE_COLUMNS if alone else COLUMNS
    parts = 1 if alone else blocks(rows, ROWS * STEPS)
    m, norm = m.contiguous(), norm.contiguous()
    bias = None if bias is None else bias.contiguous()
    dm = torch.empty_like(norm)
    sums = dm if alone else norm.new_empty(parts, columns)
    x, W, h, B = source or (None, None, None, None)
    made_of = (
        *(dY, x, W, h, B, rows),
        0 if x is None else x.shape[1],
        0 if h is None else h.shape[1],
        0 if W is None else W.stride(0),
        0 if W is None else W.stride(1),
    )
    with launching(dY.device):
        _scale_and_sum[(blocks(columns, width), parts)](
            held,
            m,
            norm,
            bias,
            dZ,
            sums,
            columns,
            *made_of,
            BIAS=bias is not None,
            ALONE=alone,
            SMALLEST=smallest if alone else 0.0,
            SOURCE=source is not None and alone,
            ROWS=ROWS,
            COLUMNS=width,
            STEPS=steps,
            DEPTH=DEPTH,
        )
        if not alone:
            _finish[(blocks(columns, SUMMED_COLUMNS),)](
                sums,
                m,
                norm,
                dm,
                parts,
                columns,
                *made_of,
                SMALLEST=smallest,
                SOURCE=source is not None,
                ROWS=ROWS,
                COLUMNS=SUMMED_COLUMNS,
                DEPTH=DEPTH,
            )
    return dZ, dm


@triton.jit
def _scale_and_sum(
    held,
    m,
    norm,
    bias,
    dZ,
    sums,
    n_columns,
    dY,
    x,
    W,
    h,
    B,
    n_rows,
    d_in,
    rank,
    W_row,
    W_column,
    BIAS: tl.constexpr,
    ALONE: tl.constexpr,
    SMALLEST: tl.constexpr,
    SOURCE: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    STEPS: tl.constexpr,
    DEPTH: tl.constexpr,
):
    """The sums of all rows are finished here if a program has its columns for itself (``ALONE``)."""
    columns = tl.program_id(0) * COLUMNS + tl.arange(0, COLUMNS)
    column_there = columns < n_columns
    gain = over_norm(tl.load(m + columns, mask=column_there, other=0.0), norm, columns, column_there)
    if BIAS:
        shift = tl.load(bias + columns, mask=column_there, other=0.0).to(tl.float32)
    total = tl.zeros((ROWS, COLUMNS), tl.float32)
    for step in tl.static_range(STEPS):  # unrolled, so that the next block's loads are in flight
        # A block's start may exceed 32 bits; offsets inside it do not.
        first = (tl.program_id(1) * STEPS + step) * ROWS
        rows = tl.arange(0, ROWS)
        there = (rows < n_rows - first)[:, None] & column_there[None, :]
        begin = first.to(tl.int64) * n_columns
        at = rows[:, None] * n_columns + columns[None, :]
        gradients = tl.load(dY + begin + at, mask=there, other=0.0).to(tl.float32)
        outputs = tl.load(held + begin + at, mask=there, other=0.0).to(tl.float32)
        tl.store(dZ + begin + at, (gradients * gain[None, :]).to(dZ.dtype.element_ty), mask=there)
        if BIAS:
            outputs -= shift[None, :]
        total += gradients * outputs
    result = tl.sum(total, axis=0)
    if ALONE:
        result = _finished(
            result,
            m,
            norm,
            columns,
            n_columns,
            dY,
            x,
            W,
            h,
            B,
            n_rows,
            d_in,
            rank,
            W_row,
            W_column,
            SMALLEST,
            SOURCE,
            ROWS,
            COLUMNS,
            DEPTH,
        )
    tl.store(sums + tl.program_id(1) * n_columns + columns, result, mask=column_there)


@triton.jit
def _finish(
    sums,
    m,
    norm,
    dm,
    n_parts,
    n_columns,
    dY,
    x,
    W,
    h,
    B,
    n_rows,
    d_in,
    rank,
    W_row,
    W_column,
    SMALLEST: tl.constexpr,
    SOURCE: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    DEPTH: tl.constexpr,
):
    columns = tl.program_id(0) * COLUMNS + tl.arange(0, COLUMNS)
    column_there = columns < n_columns
    total = tl.zeros((ROWS, COLUMNS), tl.float32)
    for start in range(0, n_parts, ROWS):
        parts = start + tl.arange(0, ROWS)
        there = (parts < n_parts)[:, None] & column_there[None, :]
        total += tl.load(sums + parts[:, None] * n_columns + columns[None, :], mask=there, other=0.0)
    result = _finished(
        tl.sum(total, axis=0),
        m,
        norm,
        columns,
        n_columns,
        dY,
        x,
        W,
        h,
        B,
        n_rows,
        d_in,
        rank,
        W_row,
        W_column,
        SMALLEST,
        SOURCE,
        ROWS,
        COLUMNS,
        DEPTH,
    )
    tl.store(dm + columns, result, mask=column_there)


@triton.jit
def _finished(
    sums,
    m,
    norm,
    columns,
    n_columns,
    dY,
    x,
    W,
    h,
    B,
    n_rows,
    d_in,
    rank,
    W_row,
    W_column,
    SMALLEST: tl.constexpr,
    SOURCE: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    DEPTH: tl.constexpr,
):
    """The magnitude's gradient from the sums over all rows, for some columns."""
    column_there = columns < n_columns
    if SMALLEST == 0.0:
        result = over_norm(sums, norm, columns, column_there)
    else:
        # The sums are of dY ⊙ (y - b), and z / n = (y - b) / m.
        magnitude = tl.load(m + columns, mask=column_there, other=1.0).to(tl.float32)
        is_small = tl.abs(over_norm(magnitude, norm, columns, column_there)) < SMALLEST
        result = tl.where(is_small, 0.0, sums / tl.where(is_small, 1.0, magnitude))
        if SOURCE:
            n = tl.load(norm + columns, mask=column_there, other=1.0)
            some = tl.max((is_small & (n > 0.0) & column_there).to(tl.int32), axis=0)
            if some != 0:
                dots = tl.zeros((ROWS, COLUMNS), tl.float32)
                for first in range(0, n_rows, ROWS):
                    rows = first + tl.arange(0, ROWS).to(tl.int64)
                    row_there = rows < n_rows
                    z = tl.zeros((ROWS, COLUMNS), tl.float32)
                    for start in range(0, d_in, DEPTH):
                        places = start + tl.arange(0, DEPTH).to(tl.int64)
                        place_there = places < d_in
                        x_part = tl.load(
                            x + rows[:, None] * d_in + places[None, :],
                            mask=row_there[:, None] & place_there[None, :],
                            other=0.0,
                        )
                        W_part = tl.load(
                            W + columns.to(tl.int64)[None, :] * W_row + places[:, None] * W_column,
                            mask=place_there[:, None] & column_there[None, :],
                            other=0.0,
                        )
                        z = tl.dot(x_part, W_part.to(x_part.dtype), z, input_precision="ieee")
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
                        z = tl.dot(h_part, B_part.to(h_part.dtype), z, input_precision="ieee")
                    there = row_there[:, None] & column_there[None, :]
                    at = rows[:, None] * n_columns + columns[None, :]
                    dots += z * tl.load(dY + at, mask=there, other=0.0).to(tl.float32)
                z_dots = over_norm(tl.sum(dots, axis=0), norm, columns, column_there)
                result = tl.where(is_small, z_dots, result)
    return result
