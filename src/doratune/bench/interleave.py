"""Runs several providers in turn, round by round, so that a slow stretch of the machine affects all alike."""

from __future__ import annotations

import gc
import random
from collections.abc import Callable, Sequence

from doratune.bench.figures import WARMUP_ROUNDS


def interleaved(
    names: Sequence[str],
    time_one: Callable[[str], float],
    rounds: int,
    *,
    warmup: int = WARMUP_ROUNDS,
) -> dict[str, list[float]]:
    """Time each of several providers once in every round.

    Each round has a different order, the same in every run. In a fixed order one provider would always pay
    for what another leaves behind: caches full of its tensors, and memory returned to the kernel.

    Args:
        names: The providers.
        time_one: Runs one of them and returns the milliseconds.
        rounds: Timed rounds, after those for warming up.
        warmup: Rounds before the timed ones.

    Returns:
        Milliseconds of each round by provider.
    """
    times: dict[str, list[float]] = {name: [] for name in names}
    collects = gc.isenabled()
    gc.collect()
    gc.disable()  # a collection would count as time of whichever provider is running
    try:
        for number in range(warmup + rounds):
            for name in random.Random(number).sample(names, len(names)):
                milliseconds = time_one(name)
                if number >= warmup:
                    times[name].append(milliseconds)
    finally:
        if collects:
            gc.enable()
    return times
