"""The rows of each micro-batch: every row once per epoch, even if the last batch is short."""

from __future__ import annotations

import math
from collections.abc import Generator, Sequence
from functools import lru_cache

import torch
from datasets import Dataset, concatenate_datasets

from doratune.data.encode import IGNORED
from doratune.training._internals import BatchRebalanceSampler


class RowBatches(BatchRebalanceSampler):
    """The micro-batches of one process, as row indices.

    The rows of an optimizer step depend only on the seed and the epoch. Within a step, rows of similar length
    share a micro-batch, which saves padding. transformers' own sampler fills a short last batch with rows
    from the epoch's start; this one uses fewer micro-batches instead. If there are fewer rows than processes,
    the remaining processes get a row without a loss, see ``with_blank``.

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
        super().__init__(
            lengths=list(lengths),
            effective_batch_size=micro * accumulation * processes,
            dp_size=processes,
            grad_accum=accumulation,
            rank=process,
            drop_last=False,
        )
        self._micro = micro
        self.steps = math.ceil(len(lengths) / self.effective_batch_size)
        self._last = len(lengths) - (self.steps - 1) * self.effective_batch_size
        self._order = lru_cache(maxsize=1)(self._shuffled)  # used twice per step

    @property
    def has_blanks(self) -> bool:
        """Whether a process gets a row without a loss at the end of an epoch."""
        return self._last < self._micro_batches(self._last) * self.dp_size

    def rows(self, step: int) -> list[int]:
        """The rows of an optimizer step, over all processes.

        Args:
            step: From 0, over all epochs.
        """
        epoch, batch = divmod(step, self.steps)
        return self._order(epoch)[batch * self.effective_batch_size :][: self.effective_batch_size].tolist()

    def _shuffled(self, epoch: int) -> torch.Tensor:
        return torch.randperm(len(self.lengths), generator=torch.Generator().manual_seed(self.seed + epoch))

    def tokens(self, step: int) -> int:
        """Tokens of an optimizer step, over all processes."""
        return sum(self.lengths[row] for row in self.rows(step))

    def __iter__(self) -> Generator[list[int], None, None]:
        for batch in range(self.steps):
            rows = self.rows(self.epoch * self.steps + batch)
            micro_batches = self._micro_batches(len(rows))
            rows += [len(self.lengths)] * (micro_batches * self.dp_size - len(rows))
            of_step = BatchRebalanceSampler(
                lengths=[self.lengths[row] if row < len(self.lengths) else 0 for row in rows],
                effective_batch_size=len(rows),
                dp_size=self.dp_size,
                grad_accum=micro_batches,
                shuffle=False,
                rank=self.rank,
            )
            for places in of_step:
                yield [rows[place] for place in places]

    def __len__(self) -> int:
        return (self.steps - 1) * self.grad_accum + self._micro_batches(self._last)

    def _micro_batches(self, rows: int) -> int:
        """Micro-batches of each process in a step of ``rows`` rows."""
        return math.ceil(rows / (self._micro * self.dp_size))


def with_blank(rows: Dataset, token: int) -> Dataset:
    """The rows, followed by one row of two tokens without a loss."""
    blank = {name: [[]] if name in ("input_ids", "labels") else [0] for name in rows.column_names}
    blank.update(input_ids=[[token, token]], labels=[[IGNORED, IGNORED]])
    return concatenate_datasets([rows, Dataset.from_dict(blank, features=rows.features)])
