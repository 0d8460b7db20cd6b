"""The runner of one machine: every run in its own process, one after the other or several at a time."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from functools import partial
from types import TracebackType

from doratune.study.execute import LOG_NAME, Outcome, carry_out
from doratune.study.job import Job
from doratune.study.process import run_alone


class LocalRunner:
    """Runs jobs on this machine.

    Args:
        jobs: How many at a time.
        threads: How many threads each computes with; None: as many as its libraries choose.
        initializer: Called first in each process.

    Attributes:
        capacity: How many jobs may be under way.
    """

    def __init__(self, jobs: int, threads: int | None, initializer: Callable[[], None] | None = None) -> None:
        self.capacity = jobs
        self._threads = threads
        self._initializer = initializer
        self._waiting = ThreadPoolExecutor(max_workers=jobs)

    def __enter__(self) -> LocalRunner:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._waiting.shutdown()

    def submit(self, job: Job) -> Future[Outcome]:
        """Start a job."""
        return self._waiting.submit(self._run, job)

    def stop(self) -> None:
        """Nothing to do: Ctrl-C reaches the runs' processes by itself."""

    def _run(self, job: Job) -> Outcome:
        try:
            return run_alone(
                carry_out, job, initializer=partial(_prepare, self._initializer), threads=self._threads
            )
        except BrokenProcessPool:
            return Outcome(
                0.0,
                "the run's process was ended from outside, or for want of memory\n"
                f"  where: {job.folder / LOG_NAME}\n"
                "  to do: start it again; it goes on from the last checkpoint",
            )


def _prepare(initializer: Callable[[], None] | None) -> None:
    """End without a word on Ctrl-C while there is nothing to save; training has its own way of ending."""
    signal.signal(signal.SIGINT, lambda *_: os._exit(130))
    if initializer is not None:
        initializer()
