"""The norm of each row of W + s·B·A for ranks above ``norm.RANKS``: a product that stores sums of squares.

With A and B taken as sums of two bfloat16 matrices each, as in ``norm.py``, s·B·A is one product over three
times r terms. Each program has a tile of it in registers, adds W's and stores the squares' sum per row.
"""

# pyright: reportArgumentType=false, reportCallIssue=false, reportGeneralTypeIssues=false
# pyright: reportPossiblyUnboundVariable=false
# ruff: noqa: SIM102 - CHECK is known when a kernel is compiled, and an ``and`` would read what is not there

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from doratune.engine.triton.halves import halves
from doratune.engine.triton.memory import Known
from doratune.engine.triton.select import launching
from doratune.engine.triton.sizes import blocks

SPLIT = 4096
"""Elements of A or B that one program splits."""
TILE, DEPTH, STAGES = 128, 64, 3
"""Rows and columns of a tile, terms at a time, and how many such parts are on their way at once: 97 KB."""
GROUP = 8
"""Tiles above one another whose programs run at a time, so that they share their part of A."""
SUMMED_ROWS, SUMMED_TILES = 32, 32
"""Of the sums of tiles, in one program and at a time."""


def dora_row_norm(W: Tensor, A: Tensor, B: Tensor, scaling: float, known: Known | None) -> Tensor:
    """‖W + s·B·A‖ per row.

    Args:
        W: (d_out, d_in), bfloat16, contiguous.
        A: (r, d_in), any floating dtype of at most 32 bits, contiguous.
        B: (d_out, r), likewise.
        scaling: LoRA's s.
        known: The last norm, after ``content.look``: computed anew if that found a change, and copied if not.
            None to compute it.

    Returns:
        (d_out,), float32.
    """
    (d_out, d_in), rank = W.shape, A.shape[0]
    tiles = blocks(d_in, TILE)
    A_halves = torch.empty(2, rank, d_in, dtype=torch.bfloat16, device=W.device)
    B_halves = torch.empty(2, d_out, rank, dtype=torch.bfloat16, device=W.device)
    sums = torch.empty(d_out, tiles, dtype=torch.float32, device=W.device)
    norm = torch.empty(d_out, dtype=torch.float32, device=W.device)
    A_parts, B_parts = blocks(A.numel(), SPLIT), blocks(B.numel(), SPLIT)
    state, last = (None, None) if known is None else (known.state, known.norm)
    with launching(W.device):
        _split[(A_parts + B_parts,)](
            A,
            B,
            A_halves,
            B_halves,
            state,
            A.numel(),
            B.numel(),
            A_parts,
            CHECK=known is not None,
            SPLIT=SPLIT,
        )
        _sum_squares[(blocks(d_out, TILE) * tiles,)](
            W,
            A_halves,
            B_halves,
            sums,
            state,
            d_out,
            d_in,
            rank,
            tiles,
            float(scaling),
            CHECK=known is not None,
            TILE=TILE,
            DEPTH=DEPTH,
            STAGES=STAGES,
            GROUP=GROUP,
            num_warps=8,
        )
        _finish[(blocks(d_out, SUMMED_ROWS),)](
            sums,
            norm,
            state,
            last,
            d_out,
            tiles,
            CHECK=known is not None,
            ROWS=SUMMED_ROWS,
            TILES=SUMMED_TILES,
        )
    return norm


@triton.jit
def _split(
    A, B, A_halves, B_halves, state, A_size, B_size, A_parts, CHECK: tl.constexpr, SPLIT: tl.constexpr
):
    if CHECK:
        if tl.load(state + 2) == 0:
            return
    part = tl.program_id(0)
    if part < A_parts:
        at = part * SPLIT + tl.arange(0, SPLIT)
        high, low = halves(tl.load(A + at, mask=at < A_size, other=0.0))
        tl.store(A_halves + at, high, mask=at < A_size)
        tl.store(A_halves + A_size + at, low, mask=at < A_size)
    else:
        at = (part - A_parts) * SPLIT + tl.arange(0, SPLIT)
        high, low = halves(tl.load(B + at, mask=at < B_size, other=0.0))
        tl.store(B_halves + at, high, mask=at < B_size)
        tl.store(B_halves + B_size + at, low, mask=at < B_size)


@triton.jit
def _sum_squares(
    W,
    A_halves,
    B_halves,
    sums,
    state,
    d_out,
    d_in,
    rank,
    n_tiles,
    scaling,
    CHECK: tl.constexpr,
    TILE: tl.constexpr,
    DEPTH: tl.constexpr,
    STAGES: tl.constexpr,
    GROUP: tl.constexpr,
):
    if CHECK:
        if tl.load(state + 2) == 0:
            return
    first = tl.program_id(0) // (GROUP * n_tiles) * GROUP
    in_group = tl.program_id(0) - first * n_tiles
    above = tl.minimum(tl.cdiv(d_out, TILE) - first, GROUP)
    tile = in_group // above
    rows = (first + in_group % above) * TILE + tl.arange(0, TILE)
    places = tile * TILE + tl.arange(0, TILE)
    row_there, place_there = (rows < d_out)[:, None], (places < d_in)[None, :]
    steps = tl.cdiv(rank, DEPTH)
    total = tl.zeros((TILE, TILE), tl.float32)
    for step in tl.range(0, 3 * steps, num_stages=STAGES):
        product = (
            step // steps
        )  # of the high halves, then B's high and A's low ones, then B's low and A's high
        ranks = (step - product * steps) * DEPTH + tl.arange(0, DEPTH)
        b = tl.load(
            B_halves + tl.where(product == 2, d_out * rank, 0) + rows[:, None] * rank + ranks[None, :],
            mask=row_there & (ranks < rank)[None, :],
            other=0.0,
        )
        a = tl.load(
            A_halves + tl.where(product == 1, rank * d_in, 0) + ranks[:, None] * d_in + places[None, :],
            mask=(ranks < rank)[:, None] & place_there,
            other=0.0,
        )
        total = tl.dot(b, a, total)
    w = tl.load(
        W + rows.to(tl.int64)[:, None] * d_in + places[None, :], mask=row_there & place_there, other=0.0
    )
    V = total * scaling + w.to(tl.float32)
    tl.store(sums + rows * n_tiles + tile, tl.sum(V * V, axis=1), mask=rows < d_out)


@triton.jit
def _finish(
    sums, norm, state, last, d_out, n_tiles, CHECK: tl.constexpr, ROWS: tl.constexpr, TILES: tl.constexpr
):
    rows = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    row_there = rows < d_out
    if CHECK:
        if tl.load(state + 2) == 0:
            tl.store(norm + rows, tl.load(last + rows, mask=row_there), mask=row_there)
            return
    total = tl.zeros((ROWS, TILES), tl.float32)
    for start in range(0, n_tiles, TILES):
        tiles = start + tl.arange(0, TILES)
        there = row_there[:, None] & (tiles < n_tiles)[None, :]
        total += tl.load(sums + rows[:, None] * n_tiles + tiles[None, :], mask=there, other=0.0)
    result = tl.sqrt(tl.sum(total, axis=1))
    tl.store(norm + rows, result, mask=row_there)
    if CHECK:
        tl.store(last + rows, result, mask=row_there)
