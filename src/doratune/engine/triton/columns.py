"""dY ⊙ g and Σ(dY ⊙ (y - b)) over rows in one pass over dY and y."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

ROWS, COLUMNS = 32, 128
"""Of dY at a time."""
STEPS = 4
"""Times that many rows, in one program."""


def scaled_and_dots(dY: Tensor, y: Tensor, g: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor]:
    """``dY ⊙ g`` and Σ(dY ⊙ (y - bias)) over rows.

    Args:
        dY: (N, d), contiguous.
        y: (N, d), dY's dtype, contiguous.
        g: (d,), float32.
        bias: (d,), any floating dtype of at most 32 bits, or None.

    Returns:
        (N, d) in dY's dtype, and (d,) in float32.
    """
    rows, columns = dY.shape
    scaled = torch.empty_like(dY)
    parts = triton.cdiv(rows, ROWS * STEPS)
    dots = g.new_empty(parts, columns)
    _scaled_and_dots[(triton.cdiv(columns, COLUMNS), parts)](
        dY,
        y,
        g,
        bias,
        scaled,
        dots,
        rows,
        columns,
        BIAS=bias is not None,
        ROWS=ROWS,
        COLUMNS=COLUMNS,
        STEPS=STEPS,
    )
    return scaled, dots.sum(dim=0)


@triton.jit
def _scaled_and_dots(
    dY,
    y,
    g,
    bias,
    scaled,
    dots,
    n_rows,
    n_columns,
    BIAS: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    STEPS: tl.constexpr,
):
    columns = tl.program_id(0) * COLUMNS + tl.arange(0, COLUMNS)
    column_there = columns < n_columns
    gains = tl.load(g + columns, mask=column_there, other=0.0)
    if BIAS:
        shift = tl.load(bias + columns, mask=column_there, other=0.0).to(tl.float32)
    total = tl.zeros((ROWS, COLUMNS), tl.float32)
    for step in tl.static_range(STEPS):
        rows = (tl.program_id(1) * STEPS + step) * ROWS + tl.arange(0, ROWS)
        there = (rows < n_rows)[:, None] & column_there[None, :]
        at = rows.to(tl.int64)[:, None] * n_columns + columns[None, :]
        gradients = tl.load(dY + at, mask=there, other=0.0).to(tl.float32)
        outputs = tl.load(y + at, mask=there, other=0.0).to(tl.float32)
        if BIAS:
            outputs -= shift[None, :]
        total += gradients * outputs
        tl.store(scaled + at, (gradients * gains[None, :]).to(scaled.dtype.element_ty), mask=there)
    tl.store(dots + tl.program_id(1) * n_columns + columns, tl.sum(total, axis=0), mask=column_there)
