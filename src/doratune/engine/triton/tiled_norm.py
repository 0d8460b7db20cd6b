"""The norm of each row of W + s·B·A for ranks above ``norm.RANKS``: a product that stores sums of squares.

With A and B split into two bfloat16 matrices each, as in ``norm.py``, B·A is one product with an inner
dimension of 3r. Each program has one tile of it in registers, scales it, adds W's tile and stores each row's
sum of squares. The last program in a row of tiles adds these sums up.
"""

# pyright: reportArgumentType=false, reportCallIssue=false, reportGeneralTypeIssues=false
# pyright: reportPossiblyUnboundVariable=false
# ruff: noqa: SIM102 - CHECK is a compile-time constant; with an ``and``, None would be loaded from

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from doratune.engine.triton import content_hash
from doratune.engine.triton.norm_cache import Known, NormMemory
from doratune.engine.triton.select import launching
from doratune.engine.triton.sizes import TILE, blocks, row_tiles

DEPTH, STAGES = 64, 3
"""Terms per block, and blocks in flight at once: 96 KB of shared memory."""
GROUP = 8
"""Tiles of one column whose programs run at about the same time, so that they share their part of A."""
SUMMED_TILES = 32
"""Tiles whose sums are added at a time."""


def dora_row_norm(W: Tensor, A: Tensor, B: Tensor, scaling: float, memory: NormMemory | None) -> Tensor:
    """‖W + s·B·A‖ per row.

    Args:
        W: (d_out, d_in), bfloat16, contiguous.
        A: (r, d_in), any floating dtype of at most 32 bits, contiguous.
        B: (d_out, r), likewise.
        scaling: LoRA's s.
        memory: Holds the last norm, reused if the content is the same; None to compute it always.

    Returns:
        (d_out,), float32.
    """
    if memory is None or not content_hash.hashable(W):
        return norm_unless_known(W, A, B, scaling, None)
    with memory.lock:
        try:
            return norm_unless_known(W, A, B, scaling, memory.of(W, A, B, scaling))
        except BaseException:
            # The first kernel may have recorded content whose norm the second one has not computed.
            memory.forget()
            raise


def norm_unless_known(W: Tensor, A: Tensor, B: Tensor, scaling: float, known: Known | None) -> Tensor:
    """``dora_row_norm``; reuses the norm in ``known`` if these tensors have not changed."""
    (d_out, d_in), rank = W.shape, A.shape[0]
    tiles = blocks(d_in, TILE)
    split = W.new_empty(2 * (A.numel() + B.numel()))
    sums = W.new_empty(d_out, tiles, dtype=torch.float32)
    norm = W.new_empty(d_out, dtype=torch.float32)
    arrivals = W.new_zeros(row_tiles(d_out), dtype=torch.int32) if known is None else known.arrivals
    content_hash.look_and_split(W, A, B, split, known)
    with launching(W.device):
        _sum_squares[(row_tiles(d_out) * tiles,)](
            W,
            split,
            sums,
            arrivals,
            norm,
            None if known is None else known.norm,
            None if known is None else known.state,
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
            SUMMED=SUMMED_TILES,
            num_warps=8,
        )
    return norm


@triton.jit
def _sum_squares(
    W,
    split,
    sums,
    arrivals,
    norm,
    last,
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
    SUMMED: tl.constexpr,
):
    first = tl.program_id(0) // (GROUP * n_tiles) * GROUP
    in_group = tl.program_id(0) - first * n_tiles
    above = tl.minimum(tl.cdiv(d_out, TILE) - first, GROUP)
    tile, row_tile = in_group // above, first + in_group % above
    rows = row_tile * TILE + tl.arange(0, TILE)
    row_there = rows < d_out
    if CHECK:
        if tl.load(state + 2) == 0:
            if tile == 0:
                tl.store(norm + rows, tl.load(last + rows, mask=row_there), mask=row_there)
            return
    places = tile * TILE + tl.arange(0, TILE)
    place_there = (places < d_in)[None, :]
    steps = tl.cdiv(rank, DEPTH)
    A_low = rank * d_in
    B_high = 2 * A_low
    B_low = B_high + d_out * rank
    total = tl.zeros((TILE, TILE), tl.float32)
    for step in tl.range(0, 3 * steps, num_stages=STAGES):
        # 0: the high halves; 1: B's high and A's low halves; 2: B's low and A's high halves.
        product = step // steps
        ranks = (step - product * steps) * DEPTH + tl.arange(0, DEPTH)
        b = tl.load(
            split + tl.where(product == 2, B_low, B_high) + rows[:, None] * rank + ranks[None, :],
            mask=row_there[:, None] & (ranks < rank)[None, :],
            other=0.0,
        )
        a = tl.load(
            split + tl.where(product == 1, A_low, 0) + ranks[:, None] * d_in + places[None, :],
            mask=(ranks < rank)[:, None] & place_there,
            other=0.0,
        )
        total = tl.dot(b, a, total)
    w = tl.load(
        W + rows.to(tl.int64)[:, None] * d_in + places[None, :],
        mask=row_there[:, None] & place_there,
        other=0.0,
    )
    V = total * scaling + w.to(tl.float32)
    tl.store(sums + rows * n_tiles + tile, tl.sum(V * V, axis=1), mask=row_there)
    tl.debug_barrier()  # the sums are stored before this program counts as done
    if tl.atomic_add(arrivals + row_tile, 1) == n_tiles - 1:
        squares = tl.zeros((TILE, SUMMED), tl.float32)
        for start in range(0, n_tiles, SUMMED):
            tiles = start + tl.arange(0, SUMMED)
            squares += tl.load(
                sums + rows[:, None] * n_tiles + tiles[None, :],
                mask=row_there[:, None] & (tiles < n_tiles)[None, :],
                other=0.0,
                cache_modifier=".cg",
            )
        result = tl.sqrt(tl.sum(squares, axis=1))
        tl.store(norm + rows, result, mask=row_there)
        if CHECK:
            tl.store(last + rows, result, mask=row_there)
        tl.store(arrivals + row_tile, 0)
