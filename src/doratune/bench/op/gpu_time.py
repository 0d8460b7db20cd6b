"""The time of a GPU alone: each call is queued while the GPU is busy, so that it never waits for the host.

A call of one layer is a dozen launches or two. Where the GPU is done with them sooner than the host, a clock
on the host measures the host. A model's step hides that, as the host runs ahead; so do compiled models.
"""

from __future__ import annotations

import logging
import random
from collections.abc import Sequence

import torch

from doratune.bench.op.layer_data import LayerData
from doratune.bench.op.providers import Subject
from doratune.bench.timing import WARMUP_ROUNDS

logger = logging.getLogger(__name__)

BUSY_CYCLES = 20_000_000
"""Some 10 ms, in which the host queues a call."""


def gpu_rounds(subjects: Sequence[Subject], data: LayerData, rounds: int) -> dict[str, list[float]]:
    """Time forward and backward of each layer as ``time_rounds`` does, without the host.

    Args:
        subjects: The layers, on a GPU.
        data: Their input.
        rounds: Rounds that count, after ``WARMUP_ROUNDS`` that do not.

    Returns:
        Milliseconds of each round by provider, without those whose call the host could not queue in time:
        it waits for the GPU itself.
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
                logger.info("%s is not queued before the GPU has come to it", name)
                del times[name]
            else:
                times[name].append(milliseconds)
    return times


def _queued(subject: Subject, data: LayerData) -> float | None:
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    subject.prepare(data)
    torch.cuda.synchronize()
    torch.cuda._sleep(BUSY_CYCLES)
    start.record()
    subject.call(data)
    end.record()
    in_time = not start.query()
    end.synchronize()
    return start.elapsed_time(end) if in_time else None
