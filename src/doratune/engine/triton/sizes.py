"""Block sizes, in plain integers: Triton's own functions for them take microseconds per launch."""

from __future__ import annotations

from torch import Tensor

SMALLEST = 16
"""The smallest dimension that Triton accepts in a product."""
WORD = 8
"""Bytes in a word, the unit in which W is hashed."""
LANES, STEPS = 1024, 8
"""A part of a hash covers LANES x STEPS words of W, or elements of A or B; each lane takes STEPS of them."""
TILE = 128
"""Rows and columns of a tile of W + s·B·A."""


def blocks(size: int, block: int) -> int:
    """How many blocks hold ``size`` elements."""
    return -(-size // block)


def block_of(size: int, *, at_least: int = SMALLEST, at_most: int) -> int:
    """The smallest power of two that holds ``size`` elements, kept between ``at_least`` and ``at_most``."""
    return max(at_least, min(at_most, 1 << max(size - 1, 0).bit_length()))


def hashed_parts(W: Tensor, A: Tensor, B: Tensor) -> tuple[int, int, int]:
    """The numbers of parts in which W, A and B are hashed."""
    counts = W.numel() * W.element_size() // WORD, A.numel(), B.numel()
    W_parts, A_parts, B_parts = (blocks(count, LANES * STEPS) for count in counts)
    return W_parts, A_parts, B_parts


def row_tiles(d_out: int) -> int:
    """The number of rows of tiles."""
    return blocks(d_out, TILE)
