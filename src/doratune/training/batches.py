"""The rows of each micro-batch: every row once per epoch, even if the last batch is short."""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Generator, Sequence
from functools import lru_cache

import torch
from datasets import Dataset, concatenate_datasets
from torch.utils.data import Sampler

from doratune.data.encode import IGNORED

SEED = 42
"""Of the order of the rows; the run's own seed has shuffled them before."""


class RowBatches(Sampler[list[int]]):
    """The micro-batches of one process, as row indices.

    The rows of an optimizer step depend only on the seed and the epoch. Within a step, rows of similar length
    share a micro-batch, which saves padding; see ``share_out``. A short last batch has fewer micro-batches.
    If there are fewer rows than processes, the remaining processes get a row without a loss, see
    ``with_blank``.

    Args:
        lengths: Tokens of every row.
        micro: Rows of a micro-batch, on average.
        accumulation: Micro-batches of an optimizer step.
        processes: Number of processes that train together.
        process: Index of this one.

    Attributes:
        steps: Optimizer steps of an epoch.
    """

    def __init__(
        self, lengths: Sequence[int], *, micro: int, accumulation: int, processes: int = 1, process: int = 0
    ) -> None:
        self.lengths = list(lengths)
        self._with_blank = [*lengths, 0]
        self._batch = micro * accumulation * processes
        self._processes = processes
        self._accumulation = accumulation
        self._process = process
        self.epoch = 0
        self._micro = micro
        self.steps = math.ceil(len(lengths) / self._batch)
        self._last = len(lengths) - (self.steps - 1) * self._batch
        self._order = lru_cache(maxsize=1)(self._shuffled)  # used twice per step

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch whose rows come next, counted from 0."""
        self.epoch = epoch

    @property
    def has_blanks(self) -> bool:
        """Whether a process gets a row without a loss at the end of an epoch."""
        return self._last < self._micro_batches(self._last) * self._processes

    def rows(self, step: int) -> list[int]:
        """The rows of an optimizer step, over all processes.

        Args:
            step: From 0, over all epochs.
        """
        epoch, batch = divmod(step, self.steps)
        return self._order(epoch)[batch * self._batch :][: self._batch].tolist()

    def _shuffled(self, epoch: int) -> torch.Tensor:
        return torch.randperm(len(self.lengths), generator=torch.Generator().manual_seed(SEED + epoch))

    def tokens(self, step: int) -> int:
        """Tokens of an optimizer step, over all processes."""
        return sum(self.lengths[row] for row in self.rows(step))

    def __iter__(self) -> Generator[list[int], None, None]:
        for batch in range(self.steps):
            rows = self.rows(self.epoch * self.steps + batch)
            micro_batches = self._micro_batches(len(rows))
            rows += [len(self.lengths)] * (micro_batches * self._processes - len(rows))
            groups = share_out(self._with_blank, rows, micro_batches * self._processes)
            yield from groups[self._process :: self._processes]

    def __len__(self) -> int:
        return (self.steps - 1) * self._accumulation + self._micro_batches(self._last)

    def _micro_batches(self, rows: int) -> int:
        """Micro-batches of each process in a step of ``rows`` rows."""
        return math.ceil(rows / (self._micro * self._processes))


def share_out(lengths: Sequence[int], rows: Sequence[int], groups: int) -> list[list[int]]:
    """Divide rows into micro-batches of similar cost, the longest rows first.

    A micro-batch costs its rows times the length of its longest, as shorter ones are padded. The costliest
    micro-batch costs as little as it can when neighbours by length stay together.

    Args:
        lengths: Tokens of every row.
        rows: At least as many rows as there are groups.
        groups: Number of micro-batches; none is empty.
    """
    ordered = sorted(rows, key=lambda row: lengths[row], reverse=True)
    longest = lengths[ordered[0]]
    limits = range(longest, longest * len(ordered) + 1)
    fits = bisect_left(
        limits, True, key=lambda limit: len(_filled(lengths, ordered, limit, groups)) <= groups
    )
    return _filled(lengths, ordered, limits[fits], groups)


def _filled(lengths: Sequence[int], ordered: list[int], limit: int, groups: int) -> list[list[int]]:
    """Neighbours in micro-batches that cost at most ``limit`` each, a row left for each of ``groups``."""
    filled: list[list[int]] = []
    for place, row in enumerate(ordered):
        is_full = not filled or (len(filled[-1]) + 1) * lengths[filled[-1][0]] > limit
        if is_full or len(ordered) - place == groups - len(filled):
            filled.append([])
        filled[-1].append(row)
    return filled


def with_blank(rows: Dataset, token: int) -> Dataset:
    """The rows, followed by one row of two tokens without a loss."""
    blank = {name: [[]] if name in ("input_ids", "labels") else [0] for name in rows.column_names}
    blank.update(input_ids=[[token, token]], labels=[[IGNORED, IGNORED]])
    return concatenate_datasets([rows, Dataset.from_dict(blank, features=rows.features)])
