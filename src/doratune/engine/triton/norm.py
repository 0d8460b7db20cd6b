"""The norm of each row of W + s·B·A in one pass over a bfloat16 W, with V = W + s·B·A in registers.

One launch computes the norms of one layer, or of all layers of a model: in small steps the host launches
kernels more slowly than a GPU runs them.

Squares are only added, never subtracted, so a row that s·B·A nearly cancels keeps its digits. A and B are
each split into the sum of two bfloat16 matrices, which keeps 16 bits of every element. Of the four products
the smallest is left out, so an element of B·A has a relative error of about 2⁻¹⁶.
"""

# pyright: reportArgumentType=false, reportCallIssue=false, reportGeneralTypeIssues=false
# pyright: reportPossiblyUnboundVariable=false

from __future__ import annotations

import functools
import itertools
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from doratune.engine.triton.device_functions import halves
from doratune.engine.triton.select import current_stream, launching, shared_memory
from doratune.engine.triton.sizes import block_of, blocks

ROWS = 32
"""Rows of W per program."""
LARGE_SHARED_MEMORY = 180 << 10
"""Bytes from which the larger of two configurations, which takes 100 KB, is used; measured on an H200."""
ALIGNED = tl.constexpr(16)
"""What every address, in bytes, and d_in must be divisible by in a launch for many matrices."""
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


class Matrix(NamedTuple):
    """One W + s·B·A, as for ``dora_row_norm``."""

    W: Tensor
    A: Tensor
    B: Tensor
    scaling: float


def joinable(matrix: Matrix) -> bool:
    """Whether ``dora_row_norms`` takes a matrix that has the dtypes and strides for ``dora_row_norm``."""
    W, A, B, _ = matrix
    addresses = W.data_ptr() | A.data_ptr() | B.data_ptr()
    return addresses % ALIGNED.value == 0 and W.shape[1] % ALIGNED.value == 0 and A.shape[0] <= RANKS


def dora_row_norms(matrices: Sequence[Matrix]) -> list[Tensor]:
    """``dora_row_norm`` of many matrices: one launch for each device, dtype of A and B, and block of ranks.

    Args:
        matrices: Each ``joinable``.

    Returns:
        For each matrix (d_out,), float32; a part of a tensor that it shares with others.
    """
    kinds: defaultdict[object, list[int]] = defaultdict(list)
    for place, (W, A, B, _) in enumerate(matrices):
        kinds[W.device, A.dtype, B.dtype, block_of(A.shape[0], at_most=RANKS)].append(place)
    norms: dict[int, Tensor] = {}
    for places in kinds.values():
        norms |= zip(places, _in_one_launch([matrices[place] for place in places]), strict=True)
    return [norms[place] for place in range(len(matrices))]


def _in_one_launch(matrices: Sequence[Matrix]) -> list[Tensor]:
    W, A, B, _ = matrices[0]
    firsts = [one.data_ptr() for one in (W, A, B)]
    layout = tuple(
        (
            *((one.data_ptr() - first) // ALIGNED.value for one, first in zip(parts, firsts, strict=True)),
            *parts[0].shape,
            parts[1].shape[0],
            scaling,
        )
        for *parts, scaling in matrices
    )
    with launching(W.device):
        plan = _plan(W.device, current_stream(W.device), layout)
        ranks, programs = block_of(A.shape[0], at_most=RANKS), len(plan.matrix_of)
        norms = torch.empty(programs * ROWS, dtype=torch.float32, device=W.device)
        _dora_row_norms[(programs,)](
            plan.matrix_of,
            plan.table,
            plan.scalings,
            norms,
            W,
            A,
            B,
            FIELDS=plan.table.shape[1],
            ROWS=ROWS,
            RANKS=ranks,
            **configuration(ranks, is_large=shared_memory(W.device) >= LARGE_SHARED_MEMORY),
            num_warps=8,
        )
    return [norms[start : start + one.W.shape[0]] for start, one in zip(plan.starts, matrices, strict=True)]


@dataclass(frozen=True)
class _Plan:
    """Where the programs of one launch find their matrices and leave the norms.

    Attributes:
        matrix_of: Which matrix each program works on, (programs,), int32.
        table: For each matrix where W, A and B are, d_out, d_in, r and its first program, int64.
        scalings: (matrices,), float32.
        starts: Where each matrix's norms start.
    """

    matrix_of: Tensor
    table: Tensor
    scalings: Tensor
    starts: list[int]


@functools.lru_cache(maxsize=64)
def _plan(device: torch.device, _stream: int, layout: tuple[tuple[Any, ...], ...]) -> _Plan:
    """The plan for matrices at these places; an optimizer step moves none of them.

    Each stream has its own, so that no memory is freed that another stream's kernel still reads.
    """
    counts = [blocks(d_out, ROWS) for _, _, _, d_out, *_ in layout]
    firsts = list(itertools.accumulate(counts, initial=0))[:-1]
    matrix_of = [matrix for matrix, count in enumerate(counts) for _ in range(count)]
    table = [[*fields, first] for (*fields, _), first in zip(layout, firsts, strict=True)]
    return _Plan(
        torch.tensor(matrix_of, dtype=torch.int32, device=device),
        torch.tensor(table, dtype=torch.int64, device=device),
        torch.tensor([scaling for *_, scaling in layout], dtype=torch.float32, device=device),
        [first * ROWS for first in firsts],
    )


def configuration(ranks: int, *, is_large: bool) -> dict[str, int]:
    """Columns of W per block (``DEPTH``), and blocks in flight at once (``STAGES``)."""
    return {"DEPTH": min(256, (8192 if is_large else 4096) // ranks), "STAGES": 3 if is_large else 2}


@triton.jit
def _row_norms(
    W, A, B, rows, d_out, d_in, rank, scaling, RANKS: tl.constexpr, DEPTH: tl.constexpr, STAGES: tl.constexpr
):
    """The norms of some rows."""
    ranks = tl.arange(0, RANKS)
    row_there, rank_there = rows < d_out, ranks < rank
    row_start = rows.to(tl.int64)[:, None] * d_in
    b = tl.load(
        B + rows[:, None] * rank + ranks[None, :], mask=row_there[:, None] & rank_there[None, :], other=0.0
    )
    b_high, b_low = halves(b)
    squares = tl.zeros((rows.shape[0], DEPTH), tl.float32)
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
    return tl.sqrt(tl.sum(squares, axis=1))


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
    found = _row_norms(W, A, B, rows, d_out, d_in, rank, scaling, RANKS, DEPTH, STAGES)
    tl.store(norm + rows, found, mask=rows < d_out)


@triton.jit
def _dora_row_norms(
    matrix_of,
    table,
    scalings,
    norms,
    W,
    A,
    B,
    FIELDS: tl.constexpr,
    ROWS: tl.constexpr,
    RANKS: tl.constexpr,
    DEPTH: tl.constexpr,
    STAGES: tl.constexpr,
):
    matrix = tl.load(matrix_of + tl.program_id(0))
    entry = table + matrix * FIELDS
    # Counted from an argument, since the compiler would not know that a loaded address is aligned.
    W += tl.load(entry) * (ALIGNED // (W.dtype.element_ty.primitive_bitwidth // 8))
    A += tl.load(entry + 1) * (ALIGNED // (A.dtype.element_ty.primitive_bitwidth // 8))
    B += tl.load(entry + 2) * (ALIGNED // (B.dtype.element_ty.primitive_bitwidth // 8))
    d_out, d_in = tl.load(entry + 3).to(tl.int32), tl.multiple_of(tl.load(entry + 4).to(tl.int32), ALIGNED)
    rank, first = tl.load(entry + 5).to(tl.int32), tl.load(entry + 6).to(tl.int32)
    rows = (tl.program_id(0) - first) * ROWS + tl.arange(0, ROWS)
    found = _row_norms(W, A, B, rows, d_out, d_in, rank, tl.load(scalings + matrix), RANKS, DEPTH, STAGES)
    tl.store(norms + tl.program_id(0) * ROWS + tl.arange(0, ROWS), found, mask=rows < d_out)
