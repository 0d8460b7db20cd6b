"""The sizes from which each speed-up pays, measured on CPUs."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class SpeedupSettings:
    """Thresholds; results do not depend on them.

    Attributes:
        spared_tokens: Fewest tokens that are worth leaving out, since that takes a few copies of the others.
        own_tokens: Longest rows for the attention of ``attention.py``. Relative to sdpa, a step of
            SmolLM2-135M takes 0.8 of the time at 128 tokens and 0.9 at 256, with 1.04 and 1.07 of the memory;
            at 512 it would take 1.2 of the time.
        eager_tokens: Longest rows for a model's own eager attention. Relative to sdpa, a step takes 0.80 of
            the time at 64 tokens and 0.77 at 128; at 256 both take the same, and eager attention 1.4 of the
            memory.
        chunk_elements: Most logits at a time, 16 MiB in bfloat16: each chunk reads the whole head.
        block_elements: Most log-probabilities at a time, in float32, so that they stay in the CPU's caches.
    """

    spared_tokens: int = 128
    own_tokens: int = 256
    eager_tokens: int = 160
    chunk_elements: int = 1 << 23
    block_elements: int = 1 << 19
