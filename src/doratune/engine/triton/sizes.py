"""Sizes of blocks, in plain integers: Triton's own functions for them take microseconds in every launch."""

from __future__ import annotations

SMALLEST = 16
"""The smallest side of a product that Triton takes."""


def blocks(size: int, block: int) -> int:
    """How many blocks hold ``size`` elements."""
    return -(-size // block)


def block_of(size: int, *, at_most: int) -> int:
    """A power of two for a block of ``size`` elements: the next one, from ``SMALLEST`` to ``at_most``."""
    return max(SMALLEST, min(at_most, 1 << max(size - 1, 0).bit_length()))
