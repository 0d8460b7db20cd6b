"""The norm of each row of W + s·B·A in one pass over a bfloat16 W.

The equation is that of ``engine/norm.py``. A is taken as the sum of two bfloat16 matrices, 16 bits of
each element; so the products of U = W Aᵀ are exact but for what A loses, up to 2⁻¹⁷ of each element, and are
summed in float32. That is 30 times less than TF32 would lose.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

ROWS = 16
"""Of W, in one program: a GPU has more than a hundred processors, and W a few thousand rows."""


def takes(W: Tensor, A: Tensor, B: Tensor) -> bool:
    """Whether the kernel computes this norm; the tensors are on a GPU."""
    contiguous = W.is_contiguous() and A.is_contiguous() and B.is_contiguous()
    return contiguous and W.dtype == torch.bfloat16


def dora_row_norm(W: Tensor, A: Tensor, B: Tensor, scaling: float) -> Tensor:
    """‖W + s·B·A‖ per row.

    Args:
        W: (d_out, d_in), bfloat16, contiguous.
        A: (r, d_in), any floating dtype of at most 32 bits, contiguous.
        B: (d_out, r), likewise.
        scaling: LoRA's s.

    Returns:
        (d_out,), float32.
    """
    d_out, d_in = W.shape
    rank = A.shape[0]
    wide_A = A.float()
    norm = torch.empty(d_out, dtype=torch.float32, device=W.device)
    ranks = max(16, min(64, triton.next_power_of_2(rank)))
    _dora_row_norm[(triton.cdiv(d_out, ROWS),)](
        W,
        A,
        B,
        wide_A @ wide_A.T,
        norm,
        d_out,
        d_in,
        rank,
        scaling,
        SPLIT=A.dtype == torch.float32,
        ROWS=ROWS,
        RANKS=ranks,
        DEPTH=4096 // ranks,
        num_stages=3,
    )
    return norm


@triton.jit
def _dora_row_norm(
    W,
    A,
    B,
    G,
    norm,
    d_out,
    d_in,
    rank,
    scaling,
    SPLIT: tl.constexpr,
    ROWS: tl.constexpr,
    RANKS: tl.constexpr,
    DEPTH: tl.constexpr,
):
    rows = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    row_there = rows < d_out
    row_start = rows.to(tl.int64)[:, None] * d_in
    squares = tl.zeros((ROWS, DEPTH), tl.float32)
    update = tl.zeros((ROWS,), tl.float32)
    for rank_start in range(0, rank, RANKS):
        ranks = rank_start + tl.arange(0, RANKS)
        rank_there = ranks < rank
        U = tl.zeros((ROWS, RANKS), tl.float32)
        for start in range(0, d_in, DEPTH):
            places = start + tl.arange(0, DEPTH)
            place_there = places < d_in
            w = tl.load(
                W + row_start + places[None, :], mask=row_there[:, None] & place_there[None, :], other=0.0
            )
            a = tl.load(
                A + ranks[None, :] * d_in + places[:, None],
                mask=place_there[:, None] & rank_there[None, :],
                other=0.0,
            )
            high = a.to(tl.bfloat16)
            U = tl.dot(w, high, U)
            if SPLIT:
                U = tl.dot(w, (a - high.to(tl.float32)).to(tl.bfloat16), U)
            if rank_start == 0:
                wide = w.to(tl.float32)
                squares += wide * wide
        BG = tl.zeros((ROWS, RANKS), tl.float32)
        for start in range(0, rank, RANKS):
            inner = start + tl.arange(0, RANKS)
            inner_there = inner < rank
            b = tl.load(
                B + rows[:, None] * rank + inner[None, :],
                mask=row_there[:, None] & inner_there[None, :],
                other=0.0,
            )
            gram = tl.load(
                G + inner[:, None] * rank + ranks[None, :],
                mask=inner_there[:, None] & rank_there[None, :],
                other=0.0,
            )
            BG = tl.dot(b.to(tl.float32), gram, BG, input_precision="ieee")
        b = tl.load(
            B + rows[:, None] * rank + ranks[None, :],
            mask=row_there[:, None] & rank_there[None, :],
            other=0.0,
        )
        update += tl.sum(b.to(tl.float32) * (2.0 * U + scaling * BG), axis=1)
    squared = tl.sum(squares, axis=1) + scaling * update
    tl.store(norm + rows, tl.sqrt(tl.maximum(squared, 0.0)), mask=row_there)
