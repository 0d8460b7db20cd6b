"""The sizes from which each speed-up pays off, measured on CPUs."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class SpeedupSettings:
    """Thresholds; results do not depend on them.

    Attributes:
        spared_tokens: The fewest tokens worth leaving out, since that takes a few copies of the others.
        own_tokens: The longest rows for ``attention.py``. Relative to sdpa, a step of SmolLM2-135M takes 0.8×
            the time at 128 tokens and 0.9× at 256, and 1.04× and 1.07× the memory; at 512 it would take 1.2×
            the time.
        eager_tokens: The longest rows for a model's own eager attention. Relative to sdpa, a step takes 0.80×
            the time at 64 tokens and 0.77× at 128; at 256 it takes the same time and 1.4× the memory.
        chunk_elements: The most logits at a time, 16 MiB in bfloat16; each chunk reads the whole head.
        block_elements: The most log-probabilities at a time, in float32, so that they fit the CPU's caches.
    """

    spared_tokens: int = 128
    own_tokens: int = 256
    eager_tokens: int = 160
    chunk_elements: int = 1 << 23
    block_elements: int = 1 << 19
