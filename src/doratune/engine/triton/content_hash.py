"""Detects whether W, A or B has changed, by a hash that one kernel computes and the next one uses.

Each lane of a program reads words from its own positions: a ← (a ⊕ w)·C, then the upper half of a is mixed
into the lower half. Every step is invertible, so a lane in which one word has changed is certain to end in a
different state. The hash is the sum of all lanes' final states, each scrambled once more. Any other change
goes unnoticed with a probability of 2⁻⁶⁴.
"""

# pyright: reportArgumentType=false, reportCallIssue=false, reportGeneralTypeIssues=false
# pyright: reportPossiblyUnboundVariable=false

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from doratune.engine.triton.device_functions import halves
from doratune.engine.triton.norm_cache import Known
from doratune.engine.triton.select import launching
from doratune.engine.triton.sizes import LANES, STEPS, WORD, hashed_parts


def hashable(W: Tensor) -> bool:
    """Whether a contiguous tensor on a GPU consists of whole, aligned words."""
    return W.data_ptr() % WORD == 0 and W.numel() * W.element_size() % WORD == 0


def look_and_split(W: Tensor, A: Tensor, B: Tensor, split: Tensor, known: Known | None) -> None:
    """Split A and B, and record in ``known.state`` whether W, A or B has changed since the last call.

    Args:
        W: (d_out, d_in), contiguous, ``hashable``.
        A: (r, d_in), any floating dtype of at most 32 bits, contiguous.
        B: (d_out, r), likewise.
        split: (2·(r·d_in + d_out·r),), bfloat16; receives the high halves of A, its low halves, then B's.
        known: The last norm of these tensors, or None to split only.
    """
    W_parts, A_parts, B_parts = hashed_parts(W, A, B)
    if known is None:
        W_parts = 0
    with launching(W.device):
        _look_and_split[(W_parts + A_parts + B_parts,)](
            W,
            A,
            B,
            split,
            None if known is None else known.hashes,
            None if known is None else known.state,
            W.numel() * W.element_size() // WORD,
            A.numel(),
            B.numel(),
            W_parts,
            A_parts,
            B_parts,
            CHECK=known is not None,
            LANES=LANES,
            STEPS=STEPS,
        )


@triton.jit
def _scrambled(values):
    """Distinct values for distinct values; each bit depends on every bit of the input."""
    values = (values ^ (values >> 30)) * 0xBF58476D1CE4E5B9
    values = (values ^ (values >> 27)) * 0x94D049BB133111EB
    return values ^ (values >> 31)


@triton.jit
def _with_words(state, words):
    state = (state ^ words) * 0x9E3779B97F4A7C15
    return state ^ (state >> 32)


@triton.jit
def _split_part(source, high, low, size, part, state, LANES: tl.constexpr, STEPS: tl.constexpr):
    """Split one part of A or B; returns ``state`` updated with its content."""
    for step in tl.static_range(STEPS):
        at = (part * STEPS + step) * LANES + tl.arange(0, LANES)
        there = at < size
        values = tl.load(source + at, mask=there, other=0.0)
        upper, lower = halves(values)
        tl.store(high + at, upper, mask=there)
        tl.store(low + at, lower, mask=there)
        state = _with_words(state, values.to(tl.float32).to(tl.uint32, bitcast=True).to(tl.uint64))
    return state


@triton.jit
def _look_and_split(
    W,
    A,
    B,
    split,
    hashes,
    known,
    W_words,
    A_size,
    B_size,
    W_parts,
    A_parts,
    B_parts,
    CHECK: tl.constexpr,
    LANES: tl.constexpr,
    STEPS: tl.constexpr,
):
    part = tl.program_id(0)
    lanes = tl.arange(0, LANES)
    # Each lane of each part starts from a different state: otherwise swapping two would not change the sum.
    state = _scrambled(part.to(tl.uint64) * LANES + lanes.to(tl.uint64) + 1)
    if part < W_parts:
        words = W.to(tl.pointer_type(tl.uint64))
        for step in tl.static_range(STEPS):
            at = (part * STEPS + step) * LANES + lanes
            state = _with_words(state, tl.load(words + at, mask=at < W_words, other=0))
    elif part < W_parts + A_parts:
        state = _split_part(A, split, split + A_size, A_size, part - W_parts, state, LANES, STEPS)
    else:
        B_high = split + 2 * A_size
        state = _split_part(B, B_high, B_high + B_size, B_size, part - W_parts - A_parts, state, LANES, STEPS)
    if CHECK:
        n_parts = W_parts + A_parts + B_parts
        tl.store(hashes + part, tl.sum(_scrambled(state).to(tl.int64, bitcast=True), axis=0))
        tl.debug_barrier()  # the hash is stored before this program counts as done
        if tl.atomic_add(known + 3, 1) == n_parts - 1:
            sums = tl.zeros((LANES,), tl.int64)
            for start in range(0, n_parts, LANES):
                at = start + lanes
                sums += tl.load(hashes + at, mask=at < n_parts, other=0, cache_modifier=".cg")
            content = tl.sum(sums, axis=0)
            same = (tl.load(known) == content) & (tl.load(known + 1) == 1)
            tl.store(known, content)
            tl.store(known + 1, 1)
            tl.store(known + 2, tl.where(same, 0, 1))
            tl.store(known + 3, 0)
