"""Progress of a study: a line for each job that has ended and, in a terminal, a bar with the time left."""

from __future__ import annotations

import time
from types import TracebackType

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

from doratune.cli.output import new_console
from doratune.records.layout import METRICS_NAME
from doratune.report.numbers import duration
from doratune.study.cost import known_speeds, work_left
from doratune.study.execute import Outcome
from doratune.study.job import Job
from doratune.study.study import Study


class StudyProgress:
    """Watches a study from the terminal.

    Args:
        study: The study.
        jobs: Runs at a time.
    """

    def __init__(self, study: Study, *, jobs: int) -> None:
        self._study = study
        self._jobs = jobs
        self._running: dict[str, Job] = {}
        self._speeds = known_speeds(study.plan, study.groups)
        self._left = {job.key: (job, work) for _, job, work in work_left(study.groups)}
        self._console = new_console(stderr=True)
        columns = (
            TextColumn("runs"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[status]}", markup=False),
        )
        self._bar = Progress(*columns, console=self._console, disable=not self._console.is_terminal)
        self._total, self._ended = len(self._left), 0
        self._began = self._noted = time.monotonic()
        self._busy = 0.0  # total seconds of the jobs that have ended
        self._stopping = False
        self._task = self._bar.add_task("runs", total=self._total, status="")

    def __enter__(self) -> StudyProgress:
        self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bar.stop()

    def started(self, job: Job) -> None:
        """A job was handed to the runner."""
        self._running[job.key] = job
        self.tick()

    def ended(self, job: Job, outcome: Outcome) -> None:
        """Say how a job ended, and what is left."""
        del self._running[job.key]
        self._noted = time.monotonic()
        self._busy += outcome.seconds
        if outcome.ending == "done":
            self._speeds.add(job)
        # Listed again: once a learning rate is chosen, the jobs that wait for it are known.
        self._left = {one.key: (one, work) for _, one, work in work_left(self._study.groups)}
        self._ended += 1
        self._total = max(self._total, self._ended + len(self._left))  # more where rates are added
        place = f"{job.folder.name} ({job.label}; {job.stage})"
        # A signal breaks the process of a run that had not begun.
        ending = "interrupted" if self._stopping and outcome.error is not None else outcome.ending
        took = f"{ending} in {duration(outcome.seconds)}"
        self._console.print(
            f"{self._ended}/{self._total} {place}: {took}{self._time_left()}",
            highlight=False,
            soft_wrap=True,
        )
        self.tick()

    def tick(self) -> None:
        """Show the progress of the current runs."""
        status = ", ".join(_step(job) for job in self._running.values())
        self._bar.update(
            self._task, completed=self._ended, total=self._total, status=f"{status}{self._time_left()}"
        )

    def stopping(self) -> None:
        """Say what happens after Ctrl-C."""
        self._stopping = True
        self._console.print("stopping: every run saves a checkpoint first; Ctrl-C again stops at once")

    def _time_left(self) -> str:
        times = [self._speeds.seconds(job.method, work) for job, work in self._left.values()]
        known = [one for one in times if one is not None]
        if not times or len(known) < len(times):
            return ""
        now = time.monotonic()
        # The total time of the jobs that have ended shows how many a cluster runs at a time.
        at_a_time = max(self._jobs, self._busy / (self._noted - self._began)) if self._busy else self._jobs
        return f", about {duration(max(sum(known) / at_a_time - (now - self._noted), 0.0))} left"


def _step(job: Job) -> str:
    """The name of a job and the step it has reached."""
    metrics = job.folder / METRICS_NAME
    if job.config is None or job.trained() or not metrics.is_file():
        return job.folder.name
    steps = len(metrics.read_bytes().splitlines())
    return f"{job.folder.name} step {steps}"
