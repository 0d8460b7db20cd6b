"""Whether W, A or B have changed, told by a hash of their content, by a kernel and for kernels.

Each lane of a program takes 64-bit words from its own places: a ← (a ⊕ w)·C, then the upper half of a is
mixed into the lower one. Every step can be undone, so that a lane in which one word has changed ends
elsewhere for certain. The hash is the sum of all lanes' ends, scrambled once more: after any other change it
is the same by chance, one in 2⁶⁴.
"""

# pyright: reportArgumentType=false, reportCallIssue=false, reportGeneralTypeIssues=false
# pyright: reportPossiblyUnboundVariable=false

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from doratune.engine.triton.memory import Known
from doratune.engine.triton.select import launching
from doratune.engine.triton.sizes import blocks

WORD = 8
"""Bytes that are taken at a time."""
LANES = 1024
"""Words side by side."""
STEPS = 8
"""Words one after the other."""


def hashable(*tensors: Tensor) -> bool:
    """Whether tensors on a GPU are whole words, one behind the other."""
    return all(
        one.is_contiguous() and one.data_ptr() % WORD == 0 and one.numel() * one.element_size() % WORD == 0
        for one in tensors
    )


def look(known: Known, W: Tensor, A: Tensor, B: Tensor) -> None:
    """Have ``known.state`` say whether their content is another than at the last look.

    Args:
        known: Of them.
        W: ``hashable``, like the others.
        A: See W.
        B: See W.
    """
    words = [one.numel() * one.element_size() // WORD for one in (W, A, B)]
    parts = [blocks(count, LANES * STEPS) for count in words]
    hashes = known.state.new_empty(sum(parts))
    with launching(W.device):
        _hash[(len(hashes),)](W, A, B, hashes, *words, *parts[:2], LANES=LANES, STEPS=STEPS)
        _compare[(1,)](hashes, known.state, len(hashes), LANES=LANES, num_warps=8)


@triton.jit
def _scrambled(values):
    """Other values for other values, each bit of which depends on all of theirs."""
    values = (values ^ (values >> 30)) * 0xBF58476D1CE4E5B9
    values = (values ^ (values >> 27)) * 0x94D049BB133111EB
    return values ^ (values >> 31)


@triton.jit
def _hash(
    W,
    A,
    B,
    hashes,
    W_words,
    A_words,
    B_words,
    W_parts,
    A_parts,
    LANES: tl.constexpr,
    STEPS: tl.constexpr,
):
    part = tl.program_id(0)
    if part < W_parts:
        words, n_words, first = W.to(tl.pointer_type(tl.uint64)), W_words, part
    elif part < W_parts + A_parts:
        words, n_words, first = A.to(tl.pointer_type(tl.uint64)), A_words, part - W_parts
    else:
        words, n_words, first = B.to(tl.pointer_type(tl.uint64)), B_words, part - W_parts - A_parts
    lanes = tl.arange(0, LANES)
    # Other starts in other lanes and parts, or two that change places would sum to the same.
    state = _scrambled(part.to(tl.uint64) * LANES + lanes.to(tl.uint64) + 1)
    for step in tl.static_range(STEPS):
        at = (first * STEPS + step) * LANES + lanes
        word = tl.load(words + at, mask=at < n_words, other=0)
        state = (state ^ word) * 0x9E3779B97F4A7C15
        state = state ^ (state >> 32)
    tl.store(hashes + part, tl.sum(_scrambled(state).to(tl.int64, bitcast=True), axis=0))


@triton.jit
def _compare(hashes, state, n_hashes, LANES: tl.constexpr):
    lanes = tl.arange(0, LANES)
    sums = tl.zeros((LANES,), tl.int64)
    for start in range(0, n_hashes, LANES):
        at = start + lanes
        sums += tl.load(hashes + at, mask=at < n_hashes, other=0)
    content = tl.sum(sums, axis=0)
    same = (tl.load(state) == content) & (tl.load(state + 1) == 1)
    tl.store(state, content)
    tl.store(state + 1, 1)
    tl.store(state + 2, tl.where(same, 0, 1))
