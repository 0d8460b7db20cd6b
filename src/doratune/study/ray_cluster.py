"""Runs jobs on a Ray cluster: every run is a task that requests its resources and starts its own processes.

All machines must have the working directory, the study's folder and the data under the same paths, as on a
shared file system, and doratune must be installed on all of them.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from concurrent.futures import Future
from importlib.util import find_spec
from pathlib import Path
from types import TracebackType
from typing import Any

from doratune.errors import InputError
from doratune.study.execute import LOG_NAME, Outcome, carry_out
from doratune.study.job import Job
from doratune.study.plan import Resources
from doratune.study.several import LostProcessError, carry_out_in_several

RETRIES = 3
"""How often a run is restarted from its last checkpoint when its worker, machine or a process is lost."""


class RayRunner:
    """Runs jobs on the Ray cluster of RAY_ADDRESS or ``ray start``, otherwise on this machine.

    Args:
        resources: The resources one run needs.
        initializer: Called first in each run's process.

    Attributes:
        capacity: How many jobs may be submitted; Ray queues those that do not fit.

    Raises:
        InputError: Ray is not installed.
    """

    def __init__(self, resources: Resources, initializer: Callable[[], None] | None = None) -> None:
        if find_spec("ray") is None:
            raise InputError(
                "--runner ray needs Ray, which is not installed", fix="pip install 'doratune[ray]'"
            )
        self.capacity = sys.maxsize
        self._resources = resources
        self._initializer = initializer
        self._references: list[Any] = []
        self._started = False

    def __enter__(self) -> RayRunner:
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # read by ray when it is imported
        import ray

        if not ray.is_initialized():
            ray.init(log_to_driver=False)
            self._started = True
        # A worker that runs only one job measures only that job's memory.
        self._remote = ray.remote(
            num_cpus=self._resources.cpus,
            num_gpus=self._resources.gpus,
            max_retries=RETRIES,
            retry_exceptions=[LostProcessError],  # pyright: ignore[reportArgumentType]
            max_calls=1,
        )(_carry_out)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._started:
            import ray

            ray.shutdown()

    def submit(self, job: Job) -> Future[Outcome]:
        """Start a job."""
        reference = self._remote.remote(job, Path.cwd(), self._initializer, self._resources)
        self._references.append(reference)
        outcome: Future[Outcome] = Future()
        reference.future().add_done_callback(lambda done: outcome.set_result(_outcome(done, job)))
        return outcome

    def stop(self, number: int) -> None:
        """Interrupt the active runs, to which Ray sends Ctrl-C, and cancel the queued ones."""
        import ray

        for reference in self._references:
            ray.cancel(reference)


def _carry_out(
    job: Job, directory: Path, initializer: Callable[[], None] | None, resources: Resources
) -> Outcome:
    """Carry out a job on a worker, which starts in one of Ray's folders."""
    os.chdir(directory)
    processes = resources.of_a_run
    if processes > 1:
        threads = max(int(resources.cpus) // processes, 1)
        return carry_out_in_several(job, processes, initializer, threads=threads, forward_ctrl_c=True)
    if initializer is not None:
        initializer()
    return carry_out(job)


def _outcome(done: Future[Outcome], job: Job) -> Outcome:
    from ray.exceptions import TaskCancelledError

    error = done.exception()
    if error is None:
        return done.result()
    if isinstance(error, TaskCancelledError):
        return Outcome(0.0, interrupted=True)
    if isinstance(error, LostProcessError):
        return Outcome(0.0, error.message)
    return Outcome(0.0, f"{type(error).__name__}: {error}\n  where: {job.folder / LOG_NAME}")
