"""Decides which jobs of a study can run now: the trials, in rounds, then the tests with the chosen rates.

Each decision follows from the records on disk alone, so that a study which is interrupted anywhere takes the
same course.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

from doratune.records.study import StudyMethod
from doratune.study.choice import Tries, choose_rate, choose_shared_rate, extended
from doratune.study.grid import Group
from doratune.study.job import Job
from doratune.study.pairs import compared_methods
from doratune.study.rates import NONE_ADDED, Added
from doratune.study.tries import tries_of

logger = logging.getLogger(__name__)


class Progress:
    """The progress of a group.

    Attributes:
        group: The group.
        added: How many learning rates have been added to the plan's.
        tries: What the trials found, by method; empty until all are done, and without trials.
        chosen: The learning rate of each method and seed; None until all trials are done. A seed that
            diverged with every rate has none.
        shared: The rate at which two methods are also compared, if they have one.
        failed: Whether one of its jobs failed, so that the group cannot be finished now.
        confirmed: Whether the choice was held against the trials' records since the last job ended.
        jobs: The jobs of the current stage.
    """

    def __init__(self, group: Group) -> None:
        self.group = group
        self.added = NONE_ADDED
        self.tries: Mapping[StudyMethod, Tries] = {}
        self.chosen: dict[StudyMethod, dict[int, float]] | None = None
        self.shared: dict[tuple[StudyMethod, StudyMethod], float] = {}
        self.failed = False
        self.confirmed = False
        self.jobs = group.trials()

    @property
    def trials(self) -> list[Job]:
        """The trials of all rates, as far as they are known."""
        return self.group.trials(self.added)

    def advance(self) -> None:
        """Add rates where the best is at an end, or choose and begin the tests; all trials must be done."""
        group = self.group
        tries = tries_of(group, self.added)
        added = extended(tries.values(), self.added, group.plan.extension)
        if added != self.added:
            self.added, self.jobs = added, group.trials(added)
            return
        self.tries = tries
        self.chosen = _chosen(group, tries)
        self.shared = _shared(group, tries)
        tests = [
            group.test(method, rate, seed)
            for method, chosen in self.chosen.items()
            for seed, rate in chosen.items()
        ]
        tests += [
            group.test(method, rate, seed)
            for pair, rate in self.shared.items()
            for method in pair
            for seed in group.seeds
        ]
        self.jobs = list({job.key: job for job in (group.base(), *tests)}.values())

    def confirm(self) -> None:
        """Decide again if a trial's record has changed: a run without weights was trained again for a test.

        On another machine it may answer otherwise.
        """
        self.confirmed = True
        if tries_of(self.group, self.added) != self.tries:
            logger.warning("trials were repeated with another result, so the learning rates are chosen again")
            self.confirmed = False
            self.chosen, self.jobs = None, self.trials


def _chosen(group: Group, tries: Mapping[StudyMethod, Tries]) -> dict[StudyMethod, dict[int, float]]:
    """The learning rate of each method and seed."""
    plan = group.plan
    if not tries:
        return {method: dict.fromkeys(group.seeds, plan.rates(method)[0]) for method in plan.methods}
    found: dict[StudyMethod, dict[int, float]] = {}
    for method, by_seed in tries.items():
        best = {seed: rate for seed, tried in by_seed.items() if (rate := choose_rate(tried)) is not None}
        if plan.choose.per == "arm":
            best = dict.fromkeys(group.seeds, *best.values()) if best else {}
        if best:
            found[method] = best
    return found


def _shared(group: Group, tries: Mapping[StudyMethod, Tries]) -> dict[tuple[StudyMethod, StudyMethod], float]:
    """The rate at which each two compared methods are compared in addition, if several were tried."""
    if len(group.plan.rates(group.plan.methods[0])) == 1:
        return {}
    found: dict[tuple[StudyMethod, StudyMethod], float | None] = {
        (one, other): choose_shared_rate(tries[one], tries[other])
        for one, other in compared_methods(list(tries))
    }
    return {pair: rate for pair, rate in found.items() if rate is not None}


@dataclass
class Schedule:
    """The jobs of a study in the plan's order.

    Attributes:
        groups: The progress of each group.
    """

    groups: list[Progress]
    _given: set[str] = field(default_factory=set)
    _running: Counter[str] = field(default_factory=Counter)  #: jobs by the name of their run's folder
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
                    self._running[job.folder.name] += 1
                    yield job

    def settle(self, job: Job, *, failed: bool) -> None:
        """Note that a job has ended."""
        self._running[job.folder.name] -= 1
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
        """Add learning rates or choose among them when all trials are done."""
        while progress.chosen is None and self._all_done(progress) and not self._busy(progress):
            before = progress.added
            progress.advance()
            if progress.added != before and not self._all_done(progress):
                logger.warning("%s", _told(progress, before))

    def _finished(self, progress: Progress) -> bool:
        while progress.chosen is not None and self._all_done(progress):
            if progress.confirmed:
                return True
            if self._busy(progress):
                return False
            progress.confirm()
            self._advance(progress)
        return False

    def _busy(self, progress: Progress) -> bool:
        """Whether a run of the group's trials is being trained again, for another group that shares it."""
        return any(self._running[one.folder.name] for one in progress.trials)

    def _all_done(self, progress: Progress) -> bool:
        for job in progress.jobs:
            if job.key not in self._done and job.key not in self._given and job.done():
                self._done.add(job.key)
        return all(job.key in self._done for job in progress.jobs)


def _told(progress: Progress, before: Added) -> str:
    """What was added to a group's learning rates, and why."""
    group = progress.group
    ends = [
        *(["smallest"] if progress.added.below > before.below else []),
        *(["largest"] if progress.added.above > before.above else []),
    ]
    method = group.plan.methods[0]
    rates = ", ".join(f"{rate:g}" for rate in group.rates(method, progress.added))
    return (
        f"{group.material.entry.name}: the best learning rate of an arm is the {' or the '.join(ends)}, so "
        f"all arms try another beyond it ({method}: {rates})"
    )
