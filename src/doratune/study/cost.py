"""Estimates what a study will take: runs, steps, tokens, and time from its own finished runs."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field

from doratune.records.layout import is_recorded
from doratune.records.storage import read_record
from doratune.study.grid import Group
from doratune.study.job import Job
from doratune.study.plan import Plan
from doratune.study.rates import Added
from doratune.study.schedule import Progress

START_SECONDS = 10.0
"""Rough time for a run's process to start and to load its model."""


@dataclass(frozen=True)
class Work:
    """The work that is left."""

    runs: int = 0  #: runs to train
    steps: int = 0  #: optimizer steps
    tokens: float = 0.0  #: tokens to train on
    rows: int = 0  #: rows to evaluate
    starts: int = 0  #: processes to start

    def __add__(self, other: Work) -> Work:
        return Work(
            self.runs + other.runs,
            self.steps + other.steps,
            self.tokens + other.tokens,
            self.rows + other.rows,
            self.starts + other.starts,
        )


@dataclass
class Speeds:
    """How fast runs are.

    Attributes:
        basis: Where the figures come from; None without any.
        tokens: (tokens, seconds) of training by method.
        rows: (rows, seconds) of evaluation.
    """

    basis: str | None = None
    tokens: dict[str, tuple[float, float]] = field(default_factory=dict)
    rows: tuple[float, float] = (0.0, 0.0)

    def add(self, job: Job) -> None:
        """Add the tokens, rows and times of a job that are on disk."""
        if job.config is not None and is_recorded(job.folder):
            training = read_record(job.folder).training
            if training is not None:
                tokens, seconds = self.tokens.get(job.method, (0.0, 0.0))
                self.tokens[job.method] = (tokens + training.tokens, seconds + training.seconds)
        for one in filter(None, (wanted.found() for wanted in job.wanted)):
            self.rows = (self.rows[0] + one.rows, self.rows[1] + one.seconds)

    def seconds(self, method: str, work: Work) -> float | None:
        """Estimated wall time of a method's work; None if no speed is known."""
        tokens, token_seconds = self.tokens.get(method) or _sum(self.tokens.values())
        rows, row_seconds = self.rows
        if (work.tokens and not tokens) or (work.rows and not rows):
            return None
        seconds = START_SECONDS * work.starts
        seconds += work.tokens * token_seconds / tokens if work.tokens else 0.0
        return seconds + (work.rows * row_seconds / rows if work.rows else 0.0)


def known_speeds(plan: Plan, groups: Sequence[Group]) -> Speeds:
    """The speeds of the study's finished runs or, without any, those that the plan assumes."""
    speeds = Speeds()
    for job in {job.folder: job for group in groups for job in planned_jobs(group)}.values():
        speeds.add(job)
    if speeds.tokens and speeds.rows[0]:
        speeds.basis = "the runs of this study that are finished"
    elif plan.assume is not None:
        assumed = plan.assume
        speeds = Speeds(assumed.basis, {"": (assumed.tokens_per_second, 1.0)}, (assumed.rows_per_second, 1.0))
    return speeds


def planned_jobs(group: Group) -> Iterator[Job]:
    """All jobs of a group; until rates are chosen, as if the first were, and the second shared."""
    progress = Progress(group)
    yield from progress.jobs
    while progress.chosen is None and all(job.done() for job in progress.jobs):
        progress.advance()
        yield from progress.jobs
    if progress.chosen is not None:
        return
    yield group.base()
    for method in group.plan.methods:
        for rate in group.rates(method)[: 2 if group.material.validation else 1]:
            for seed in group.seeds:
                yield group.test(method, rate, seed)


def jobs_if_extended(group: Group) -> list[Job]:
    """The trials of rates that may still be added to a group's, if the best are at both ends to the last."""
    progress = Progress(group)
    while progress.chosen is None and all(job.done() for job in progress.jobs):
        progress.advance()
    if progress.chosen is not None:
        return []
    most = group.plan.extension
    known = {job.key for job in progress.jobs}
    return [job for job in group.trials(Added(most, most)) if job.key not in known]


def work_left(groups: Iterable[Group]) -> list[tuple[Group, Job, Work]]:
    """The work left of each job; work that several jobs share counts for the first."""
    counted: set[tuple[str, ...]] = set()
    return [one for group in groups for one in _left(group, planned_jobs(group), counted)]


def work_if_extended(groups: Iterable[Group]) -> list[tuple[Group, Job, Work]]:
    """The work that may be added to that: rates beyond both ends of the list, as many as the plan allows."""
    counted: set[tuple[str, ...]] = set()
    return [one for group in groups for one in _left(group, jobs_if_extended(group), counted)]


def _left(
    group: Group, jobs: Iterable[Job], counted: set[tuple[str, ...]]
) -> Iterator[tuple[Group, Job, Work]]:
    for job in jobs:
        work = _work(group, job, counted)
        if work.starts:
            yield group, job, work


def _work(group: Group, job: Job, counted: set[tuple[str, ...]]) -> Work:
    rows = 0
    for wanted in job.left():
        key = (str(wanted.config.output), wanted.config.task[0])
        if key not in counted:
            counted.add(key)
            rows += wanted.rows
    work = Work(rows=rows)
    if job.config is not None and not job.trained() and (str(job.folder),) not in counted:
        counted.add((str(job.folder),))
        config, material = job.config, group.material
        per_epoch = group.rows_per_epoch
        steps = config.total_steps(per_epoch)
        seen = steps * config.batch_size if config.steps else per_epoch * config.epochs
        work += Work(runs=1, steps=steps, tokens=seen * material.tokens_per_row[config.format])
    return work + Work(starts=1) if work.rows or work.runs else work


def _sum(pairs: Iterable[tuple[float, float]]) -> tuple[float, float]:
    values = list(pairs)
    return sum(one for one, _ in values), sum(other for _, other in values)
