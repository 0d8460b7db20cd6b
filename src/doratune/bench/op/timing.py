"""Times layers: every provider in turn, round by round, so that a slow stretch affects all alike.

There are two clocks. The host's clock measures a call as its user experiences it. On a GPU a call of one
layer is one or two dozen kernel launches; if the GPU finishes them before the host has launched the next, the
host's clock measures the host. In a model's step, or a compiled model, the host runs ahead and this does not
show. So the GPU's clock times calls that are queued while the GPU is busy and never waits for the host.
"""

from __future__ import annotations

import logging
import random
import time
from collections.abc import Sequence

import torch

from doratune.bench._internals import keep_gpu_busy
from doratune.bench.figures import WARMUP_ROUNDS
from doratune.bench.interleave import interleaved
from doratune.bench.op.layer_data import LayerData
from doratune.bench.op.providers import Subject

logger = logging.getLogger(__name__)

BUSY_CYCLES = 20_000_000
"""About 10 ms, in which the host queues a call."""


def time_rounds(subjects: Sequence[Subject], data: LayerData, rounds: int) -> dict[str, list[float]]:
    """Time forward and backward of each layer, interleaved.

    Args:
        subjects: The layers.
        data: Their input.
        rounds: Timed rounds, after ``WARMUP_ROUNDS`` that are not.

    Returns:
        Milliseconds of each round by provider.
    """
    by_name = {subject.provider.name: subject for subject in subjects}
    return interleaved(list(by_name), lambda name: _time_call(by_name[name], data), rounds)


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


def gpu_rounds(subjects: Sequence[Subject], data: LayerData, rounds: int) -> dict[str, list[float]]:
    """Time forward and backward of each layer as ``time_rounds`` does, without the host.

    Args:
        subjects: The layers, on a GPU.
        data: Their input.
        rounds: Timed rounds, after ``WARMUP_ROUNDS`` that are not.

    Returns:
        Milliseconds of each round by provider, without providers whose call the host could not queue in time
        because the call itself waits for the GPU.
    """
    times: dict[str, list[float]] = {subject.provider.name: [] for subject in subjects}
    for number in range(WARMUP_ROUNDS + rounds):
        for subject in random.Random(number).sample(list(subjects), len(subjects)):
            name = subject.provider.name
            if name not in times:
                continue
            milliseconds = _queued(subject, data)
            if number < WARMUP_ROUNDS:
                continue
            if milliseconds is None:
                logger.info("%s waits for the GPU, so a call cannot be queued and has no GPU time", name)
                del times[name]
            else:
                times[name].append(milliseconds)
    return times


def _queued(subject: Subject, data: LayerData) -> float | None:
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    subject.prepare(data)
    torch.cuda.synchronize()
    keep_gpu_busy(BUSY_CYCLES)
    start.record()
    subject.call(data)
    end.record()
    in_time = not start.query()
    end.synchronize()
    return start.elapsed_time(end) if in_time else None
