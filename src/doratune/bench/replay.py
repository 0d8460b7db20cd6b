"""The time of a GPU alone: each call recorded as a CUDA graph, and all graphs launched in turn.

A call of one layer is a dozen launches or two. Where the GPU is done with them sooner than the host, a clock
on the host measures the host. A model's step hides that, as the host runs ahead; so do compiled models.
"""

from __future__ import annotations

import logging
import random
from collections.abc import Sequence

import torch

from doratune.bench.providers import Subject
from doratune.bench.timing import WARMUP_ROUNDS
from doratune.bench.weights import LayerData

logger = logging.getLogger(__name__)


def replay_rounds(subjects: Sequence[Subject], data: LayerData, rounds: int) -> dict[str, list[float]]:
    """Time forward and backward of each layer as ``time_rounds`` does, without the host.

    Args:
        subjects: The layers, on a GPU.
        data: Their input.
        rounds: Rounds that count, after ``WARMUP_ROUNDS`` that do not.

    Returns:
        Milliseconds of each round by provider, those left out whose call cannot be recorded.
    """
    recorded = {subject.provider.name: _record(subject, data) for subject in subjects}
    graphs = {name: graph for name, graph in recorded.items() if graph is not None}
    times: dict[str, list[float]] = {name: [] for name in graphs}
    for number in range(WARMUP_ROUNDS + rounds):
        for name in random.Random(number).sample(list(graphs), len(graphs)):
            milliseconds = _replay(graphs[name])
            if number >= WARMUP_ROUNDS:
                times[name].append(milliseconds)
    return times


def _record(subject: Subject, data: LayerData) -> torch.cuda.CUDAGraph | None:
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):  # what is set up on first use cannot be recorded
        for _ in range(3):
            subject.prepare(data)
            subject.call(data)
    torch.cuda.current_stream().wait_stream(stream)
    subject.prepare(data)
    graph = torch.cuda.CUDAGraph()
    try:
        with torch.cuda.graph(graph):
            subject.call(data)
    except RuntimeError as error:
        logger.info("%s cannot be recorded: %s", subject.provider.name, str(error).splitlines()[0])
        return None
    finally:
        subject.prepare(data)
    return graph


def _replay(graph: torch.cuda.CUDAGraph) -> float:
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    torch.cuda.synchronize()
    start.record()
    graph.replay()
    end.record()
    end.synchronize()
    return start.elapsed_time(end)
