"""Decides which jobs of a study can run now: first the trials, then the tests with the chosen rates."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from doratune.records.study import StudyMethod
from doratune.study.grid import Group
from doratune.study.job import Job


@dataclass(frozen=True)
class Tried:
    """A learning rate and its result on the validation rows."""

    rate: float
    correct: float  #: the sum of the rows' credits
    rows: int
    diverged: bool = False

    @property
    def accuracy(self) -> float:
        """The share of correct validation rows."""
        return self.correct / self.rows


def choose_rate(tried: Sequence[Tried]) -> float | None:
    """The learning rate with the highest accuracy, the smallest in a tie; None if all diverged."""
    finite = [one for one in tried if not one.diverged]
    return min(finite, key=lambda one: (-one.accuracy, one.rate)).rate if finite else None


class Progress:
    """The progress of a group.

    Attributes:
        group: The group.
        chosen: The learning rate of each method; None until all trials are done. A method that diverged with
            every rate has none.
        failed: Whether one of its jobs failed, so that the group cannot be finished now.
        jobs: The jobs of the current stage.
    """

    def __init__(self, group: Group) -> None:
        self.group = group
        self.chosen: dict[StudyMethod, float] | None = None
        self.failed = False
        self.jobs = group.trials()

    def choose(self) -> None:
        """Choose the learning rates and begin the tests; all trials must be done."""
        group, plan = self.group, self.group.plan
        chosen: dict[StudyMethod, float] = {}
        for method in plan.methods:
            tried = tried_rates(group, method)
            rate = choose_rate(tried) if tried else plan.rates(method)[0]
            if rate is not None:
                chosen[method] = rate
        self.chosen = chosen
        self.jobs = [
            group.base(),
            *(group.test(method, rate, seed) for method, rate in chosen.items() for seed in plan.seeds),
        ]


@dataclass
class Schedule:
    """The jobs of a study in the plan's order.

    Attributes:
        groups: The progress of each group.
    """

    groups: list[Progress]
    _given: set[str] = field(default_factory=set)
    _done: set[str] = field(default_factory=set)

    def ready(self) -> Iterator[Job]:
        """Jobs that can start now, each yielded once; jobs that are done on disk are skipped.

        Raises:
            InputError: A record on disk cannot be read, or has other rows.
        """
        for progress in self.groups:
            self._advance(progress)
            if progress.failed or self._finished(progress):
                continue
            for job in progress.jobs:
                if job.key not in self._given and job.key not in self._done:
                    self._given.add(job.key)
                    yield job

    def settle(self, job: Job, *, failed: bool) -> None:
        """Note that a job has ended."""
        if not failed:
            self._done.add(job.key)
            return
        for progress in self.groups:
            if any(one.key == job.key for one in progress.jobs):
                progress.failed = True

    def finished(self) -> list[Progress]:
        """The groups with nothing left to do."""
        for progress in self.groups:
            self._advance(progress)
        return [progress for progress in self.groups if self._finished(progress)]

    def _advance(self, progress: Progress) -> None:
        """Choose the learning rates when all trials are done."""
        if progress.chosen is None and self._all_done(progress):
            progress.choose()

    def _finished(self, progress: Progress) -> bool:
        return progress.chosen is not None and self._all_done(progress)

    def _all_done(self, progress: Progress) -> bool:
        for job in progress.jobs:
            if job.key not in self._done and job.key not in self._given and job.done():
                self._done.add(job.key)
        return all(job.key in self._done for job in progress.jobs)


def tried_rates(group: Group, method: StudyMethod) -> list[Tried]:
    """The result of each learning rate of an arm on the validation rows; empty if there are no trials.

    All trials of the arm must be done.
    """
    tried = []
    if not group.material.validation:
        return tried
    for rate in group.plan.rates(method):
        trial = group.trial(method, rate)
        if trial.diverged():
            tried.append(Tried(rate, 0.0, sum(one.rows for one in trial.wanted), diverged=True))
            continue
        answers = [found for one in trial.wanted if (found := one.answers()) is not None]
        total = math.fsum(one.total for one in answers)
        tried.append(Tried(rate, total, sum(len(one.rows) for one in answers)))
    return tried
