"""Batches of rows, answered by all processes of an evaluation in turns.

Every process knows all batches and answers whole ones, so that a batch, its padding and its rounding are the
same however many processes there are.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeVar

from accelerate import PartialState
from accelerate.utils import gather_object

from doratune.evaluation.batching import Progress
from doratune.processes import together

Answer = TypeVar("Answer")


def in_turns(
    batches: Sequence[list[int]],
    answer: Callable[[list[int]], Sequence[Answer]],
    progress: Progress | None = None,
) -> list[Answer]:
    """Answer all batches: in each turn every process takes one, as long as there are any.

    Args:
        batches: Row indices; together they have every row once.
        answer: Answers the rows of one batch.
        progress: Called after each turn with the number of rows in it.

    Returns:
        The rows' answers in order, in every process.

    Raises:
        OtherProcessError: Another process could not answer a batch.
    """
    state = PartialState()
    found: list[tuple[int, Answer]] = []
    for start in range(0, len(batches), state.num_processes):
        turn = batches[start : start + state.num_processes]
        # Each turn ends together: after an error no process goes on for hours, or waits for one that does.
        with together():
            for batch in turn[state.process_index : state.process_index + 1]:
                found += zip(batch, answer(batch), strict=True)
        if progress is not None:
            progress(sum(map(len, turn)))
    if state.num_processes > 1:
        found = gather_object(found)
    return [one for _, one in sorted(found, key=lambda pair: pair[0])]
