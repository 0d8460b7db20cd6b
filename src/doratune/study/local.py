"""Runs jobs on one machine: every run in new processes, one after the other or several at a time.

In a new process a run's peak memory is its own, and every run starts from the same state.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from collections.abc import Callable
from concurrent.futures import Future, ProcessPoolExecutor, ThreadPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from functools import partial
from types import TracebackType
from typing import TypeVar

from doratune.study.execute import LOG_NAME, Outcome, carry_out
from doratune.study.job import Job
from doratune.study.several import LostProcessError, carry_out_in_several

Result = TypeVar("Result")


class LocalRunner:
    """Runs jobs on this machine.

    Args:
        jobs: How many jobs run at a time.
        threads: Threads of each job; None: as many as its libraries choose.
        initializer: Called first in each process.
        processes: How many processes share a job.

    Attributes:
        capacity: How many jobs may run at a time.
    """

    def __init__(
        self,
        jobs: int,
        threads: int | None,
        initializer: Callable[[], None] | None = None,
        *,
        processes: int = 1,
    ) -> None:
        self.capacity = jobs
        self._processes = processes
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

    def stop(self, number: int) -> None:
        """Pass SIGTERM on to the runs' processes; a terminal sends them Ctrl-C itself."""
        if number == signal.SIGTERM:
            for child in multiprocessing.active_children():
                child.terminate()

    def _run(self, job: Job) -> Outcome:
        work: Callable[[Job], Outcome] = carry_out
        initializer, threads = self._initializer, self._threads
        if self._processes > 1:
            threads = None if threads is None else max(threads // self._processes, 1)
            work = partial(
                carry_out_in_several,
                processes=self._processes,
                initializer=initializer,
                threads=threads,
                forward_ctrl_c=False,
            )
            initializer = None  # the process that launches the others has nothing else to do
        try:
            return run_alone(work, job, initializer=initializer, threads=threads)
        except LostProcessError as error:
            return Outcome(0.0, error.message)
        except BrokenProcessPool:
            return Outcome(
                0.0,
                "the run's process was killed, perhaps because memory ran out\n"
                f"  where: {job.folder / LOG_NAME}\n"
                "  to do: start it again; it resumes from the last checkpoint",
            )


def run_alone(
    function: Callable[..., Result],
    *arguments: object,
    initializer: Callable[[], None] | None = None,
    threads: int | None = None,
) -> Result:
    """Call a function in a new process, and return or raise its result.

    Args:
        function: The function; like its arguments it must be picklable.
        *arguments: Its arguments.
        initializer: Called first in the process.
        threads: Threads of its libraries; None: as many as they choose.

    Raises:
        BrokenProcessPool: The process ended before the function did.
    """
    with ProcessPoolExecutor(
        max_workers=1,
        mp_context=multiprocessing.get_context("spawn"),
        initializer=partial(_prepare, initializer, threads),
    ) as pool:
        return pool.submit(function, *arguments).result()


def _prepare(initializer: Callable[[], None] | None, threads: int | None) -> None:
    """Set up the process. OpenMP reads its variable when torch is imported, so this comes before that."""
    # There is nothing to save yet, so Ctrl-C ends the process at once; training handles it later.
    signal.signal(signal.SIGINT, lambda *_: os._exit(130))
    threading.Thread(target=_end_with_parent, daemon=True).start()
    if threads is not None:
        os.environ["OMP_NUM_THREADS"] = str(threads)
    if initializer is not None:
        initializer()


def _end_with_parent() -> None:
    """End this process if its parent has died, for example killed; the run can resume from its checkpoint."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)
