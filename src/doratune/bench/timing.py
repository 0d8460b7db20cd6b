"""Wall time: every provider in turn, round by round, so that what slows the machine slows all of them."""

from __future__ import annotations

import gc
import random
import time
from collections.abc import Callable, Mapping, Sequence

import numpy as np
import torch

from doratune.bench.providers import Subject
from doratune.bench.weights import LayerData
from doratune.records.bench import Timing

WARMUP_ROUNDS = 2


def time_rounds(subjects: Sequence[Subject], data: LayerData, rounds: int) -> dict[str, list[float]]:
    """Time forward and backward of each layer, interleaved.

    Args:
        subjects: The layers.
        data: Their input.
        rounds: As in ``interleaved``.

    Returns:
        Milliseconds of each round by provider.
    """
    by_name = {subject.provider.name: subject for subject in subjects}
    return interleaved(list(by_name), lambda name: _time_call(by_name[name], data), rounds)


def interleaved(
    names: Sequence[str], time_one: Callable[[str], float], rounds: int
) -> dict[str, list[float]]:
    """Time each of several providers once in every round.

    A round has an order of its own, the same in every run. In a fixed order one provider would always pay for
    what another leaves behind: caches full of its tensors, and memory given back to the kernel.

    Args:
        names: The providers.
        time_one: Runs one of them, returns the milliseconds.
        rounds: Rounds that count, after ``WARMUP_ROUNDS`` that do not.

    Returns:
        Milliseconds of each round by provider.
    """
    times: dict[str, list[float]] = {name: [] for name in names}
    collects = gc.isenabled()
    gc.collect()
    gc.disable()  # a collection would be charged to whoever is running
    try:
        for number in range(WARMUP_ROUNDS + rounds):
            for name in random.Random(number).sample(names, len(names)):
                milliseconds = time_one(name)
                if number >= WARMUP_ROUNDS:
                    times[name].append(milliseconds)
    finally:
        if collects:
            gc.enable()
    return times


def _time_call(subject: Subject, data: LayerData) -> float:
    subject.prepare(data)
    _wait(data.x.device)
    start = time.perf_counter()
    subject.call(data)
    _wait(data.x.device)
    return (time.perf_counter() - start) * 1e3


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def summarise(rounds: list[float]) -> Timing:
    """The median of some milliseconds, and how they spread."""
    lowest, lower, middle, upper = np.quantile(rounds, (0, 0.25, 0.5, 0.75)).tolist()
    return Timing(
        median=middle,
        minimum=lowest,
        lower_quartile=lower,
        upper_quartile=upper,
        count=len(rounds),
        rounds=rounds,
    )


def time_ratios(
    times: Mapping[str, list[float]], provider: str, baselines: Sequence[str]
) -> dict[str, float]:
    """How many times as long a provider takes as others: the median of the ratios within each round.

    Calls of one round lie next to one another, so a slow stretch of the machine cancels, which it does not in
    a ratio of two medians.
    """
    own = np.array(times[provider])
    return {name: float(np.median(own / np.array(times[name]))) for name in baselines if name in times}
