"""Sizes of blocks, in plain integers: Triton's own functions for them take microseconds in every launch."""

from __future__ import annotations

from torch import Tensor

SMALLEST = 16
"""The smallest side of a product that Triton takes."""
WORD = 8
"""Bytes of W that are hashed at a time."""
LANES, STEPS = 1024, 8
"""Words of W, or elements of A or B, side by side and one after the other in one part of a hash."""
TILE = 128
"""Rows, and columns, of a tile of W + s·B·A."""


def blocks(size: int, block: int) -> int:
    """How many blocks hold ``size`` elements."""
    return -(-size // block)


def block_of(size: int, *, at_most: int) -> int:
    """A power of two for a block of ``size`` elements: the next one, from ``SMALLEST`` to ``at_most``."""
    return max(SMALLEST, min(at_most, 1 << max(size - 1, 0).bit_length()))


def hashed_parts(W: Tensor, A: Tensor, B: Tensor) -> tuple[int, int, int]:
    """Parts whose hashes are the content's: of W, of A, of B."""
    counts = W.numel() * W.element_size() // WORD, A.numel(), B.numel()
    W_parts, A_parts, B_parts = (blocks(count, LANES * STEPS) for count in counts)
    return W_parts, A_parts, B_parts


def row_tiles(d_out: int) -> int:
    """Rows of tiles."""
    return blocks(d_out, TILE)
