"""The norm of each row of W + s·B·A in one pass over a bfloat16 W, with V = W + s·B·A in registers.

Squares are only added, never subtracted, so a row that s·B·A nearly cancels keeps its digits. A and B are
each split into the sum of two bfloat16 matrices, which keeps 16 bits of every element. Of the four products
the smallest is left out, so an element of B·A has a relative error of about 2⁻¹⁶.
"""

# pyright: reportArgumentType=false, reportCallIssue=false, reportGeneralTypeIssues=false
# pyright: reportPossiblyUnboundVariable=false

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from doratune.engine.triton.device_functions import halves
from doratune.engine.triton.select import launching, shared_memory
from doratune.engine.triton.sizes import block_of, blocks

ROWS = 32
"""Rows of W per program."""
LARGE_SHARED_MEMORY = 180 << 10
"""Bytes from which the larger of two configurations, which takes 100 KB, is used; measured on an H200."""
RANKS = 32
"""The highest rank: above it, tiles of s·B·A are faster (``tiled_norm.py``)."""


def dora_row_norm(W: Tensor, A: Tensor, B: Tensor, scaling: float) -> Tensor:
    """‖W + s·B·A‖ per row.

    Args:
        W: (d_out, d_in), bfloat16, contiguous.
        A: (r, d_in), any floating dtype of at most 32 bits, contiguous; r is at most ``RANKS``.
        B: (d_out, r), likewise.
        scaling: LoRA's s.

    Returns:
        (d_out,), float32.
    """
    d_out, d_in = W.shape
    rank = A.shape[0]
    norm = torch.empty(d_out, dtype=torch.float32, device=W.device)
    ranks = block_of(rank, at_most=RANKS)
    with launching(W.device):
        _dora_row_norm[(blocks(d_out, ROWS),)](
            W,
            A,
            B,
            norm,
            d_out,
            d_in,
            rank,
            float(scaling),
            ROWS=ROWS,
            RANKS=ranks,
            **configuration(ranks, is_large=shared_memory(W.device) >= LARGE_SHARED_MEMORY),
            num_warps=8,
        )
    return norm


def configuration(ranks: int, *, is_large: bool) -> dict[str, int]:
    """Columns of W per block (``DEPTH``), and blocks in flight at once (``STAGES``)."""
    return {"DEPTH": min(256, (8192 if is_large else 4096) // ranks), "STAGES": 3 if is_large else 2}


@triton.jit
def _dora_row_norm(
    W,
    A,
    B,
    norm,
    d_out,
    d_in,
    rank,
    scaling,
    ROWS: tl.constexpr,
    RANKS: tl.constexpr,
    DEPTH: tl.constexpr,
    STAGES: tl.constexpr,
):
    rows = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    ranks = tl.arange(0, RANKS)
    row_there, rank_there = rows < d_out, ranks < rank
    row_start = rows.to(tl.int64)[:, None] * d_in
    b = tl.load(
        B + rows[:, None] * rank + ranks[None, :], mask=row_there[:, None] & rank_there[None, :], other=0.0
    )
    b_high, b_low = halves(b)
    squares = tl.zeros((ROWS, DEPTH), tl.float32)
    for start in tl.range(0, d_in, DEPTH, num_stages=STAGES):  # pipelines all loads, not only the products'
        places = start + tl.arange(0, DEPTH)
        place_there = places < d_in
        w_there = row_there[:, None] & place_there[None, :]
        w = tl.load(W + row_start + places[None, :], mask=w_there, other=0.0)
        a_there = rank_there[:, None] & place_there[None, :]
        a_high, a_low = halves(tl.load(A + ranks[:, None] * d_in + places[None, :], mask=a_there, other=0.0))
        V = tl.dot(b_high, a_high)
        V = tl.dot(b_high, a_low, V)
        V = tl.dot(b_low, a_high, V)
        V = V * scaling + w.to(tl.float32)
        squares += V * V
    tl.store(norm + rows, tl.sqrt(tl.sum(squares, axis=1)), mask=row_there)
