"""Conducts a study: hands its jobs to a runner until nothing is left to do."""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, wait
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Protocol

from doratune.errors import DoratuneError, StoppedError
from doratune.records.archive import has_archive, restore_runs
from doratune.records.files import write_json_atomic, write_text_atomic
from doratune.records.folders import refuse_output, refuse_run_directory
from doratune.records.layout import STUDY_NAME
from doratune.records.lock import locked
from doratune.records.storage import read_study
from doratune.study.execute import Outcome
from doratune.study.grid import Group, method_copy
from doratune.study.job import Job, drop_weights
from doratune.study.schedule import Progress, Schedule

IGNORED = """# Rows and runs are not for a repository; `doratune report FOLDER --archive` packs the runs.
/data/
/runs/
.lock
"""
POLL_SECONDS = 1.0


class Runner(AbstractContextManager["Runner"], Protocol):
    """Carries out jobs."""

    capacity: int

    def submit(self, job: Job) -> Future[Outcome]:
        """Start a job."""
        ...

    def stop(self, number: int) -> None:
        """Interrupt the running jobs, since the study has received the signal of this number."""
        ...


class Watcher(Protocol):
    """Follows the progress of a study."""

    def started(self, job: Job) -> None:
        """A job was handed to the runner."""
        ...

    def ended(self, job: Job, outcome: Outcome) -> None:
        """A job has ended."""
        ...

    def tick(self) -> None:
        """Called about once a second."""
        ...

    def stopping(self) -> None:
        """A signal arrived; the running jobs are being stopped."""
        ...


def conduct(
    groups: list[Group],
    folder: Path,
    runner: Runner,
    watcher: Watcher,
    on_finished: Callable[[list[Progress]], None],
    *,
    again: str,
) -> None:
    """Do everything that is left of a study.

    A failed run ends only its group; the other groups continue.

    Args:
        groups: The study's groups.
        folder: The study's folder.
        runner: Carries out the jobs.
        watcher: Follows the progress.
        on_finished: Called with the groups that have just finished; first with all that were finished before.
        again: How the user resumes the study, for messages.

    Raises:
        InputError: Another process conducts the study, or a record on disk does not belong to it.
        StoppedError: On Ctrl-C or SIGTERM.
        DoratuneError: Runs have failed; each is named.
    """
    with locked(folder):
        if not (folder / ".gitignore").exists():  # else it is the user's, or that of an earlier start
            write_text_atomic(folder / ".gitignore", IGNORED)
        if has_archive(folder):
            restore_runs(folder, folder)
        for material in {id(group.material): group.material for group in groups}.values():
            material.write()
        for method in {id(one): one for group in groups for one in group.plan.own_methods.values()}.values():
            write_json_atomic(method_copy(folder, method), method.model_dump(mode="json"))  # YAML reads it
        with runner:
            schedule = Schedule([Progress(group) for group in groups])
            _Conductor(schedule, runner, watcher, on_finished).run(again)


def check_folder(folder: Path) -> None:
    """Raise if this version cannot carry out a study in a folder.

    Raises:
        InputError: It is a file, a run directory, or its study.json has another schema or version.
    """
    refuse_output(folder)
    refuse_run_directory(folder)
    if (folder / STUDY_NAME).is_file():
        read_study(folder / STUDY_NAME)


class _Conductor:
    """The loop and its state."""

    def __init__(
        self,
        schedule: Schedule,
        runner: Runner,
        watcher: Watcher,
        on_finished: Callable[[list[Progress]], None],
    ) -> None:
        self.schedule = schedule
        self.runner = runner
        self.watcher = watcher
        self.on_finished = on_finished
        self.failures: list[tuple[Job, str]] = []
        self.signal = 0
        self._stopped = False
        self._reported: set[int] = set()

    def run(self, again: str) -> None:
        running: dict[Future[Outcome], Job] = {}
        with _waiting_through_signals(self._notice):
            while True:
                self._report_finished()
                self._fill(running)
                if not running:
                    break
                ended, _ = wait(running, timeout=POLL_SECONDS, return_when=FIRST_COMPLETED)
                if self.signal and not self._stopped:
                    self._stopped = True
                    self.watcher.stopping()
                    self.runner.stop(self.signal)
                for future in ended:
                    self._settle(running.pop(future), future.result())
                self.watcher.tick()
        if self.signal:
            raise StoppedError(
                self.signal, "interrupted; the runs that are finished are kept", fix=f"{again} to continue"
            )
        if self.failures:
            raise _failed(self.failures, again)

    def _notice(self, number: int) -> None:
        self.signal = number

    def _fill(self, running: dict[Future[Outcome], Job]) -> None:
        while not self.signal and len(running) < self.runner.capacity:
            job = next(self.schedule.ready(), None)
            if job is None:
                return
            self.watcher.started(job)
            running[self.runner.submit(job)] = job

    def _settle(self, job: Job, outcome: Outcome) -> None:
        if outcome.interrupted:
            self.signal = self.signal or signal.SIGINT
        elif outcome.error is not None and not self.signal:  # after a signal a process may break
            self.failures.append((job, outcome.error))
        self.schedule.settle(job, failed=outcome.interrupted or outcome.error is not None)
        self.watcher.ended(job, outcome)

    def _report_finished(self) -> None:
        found = [one for one in self.schedule.finished() if id(one) not in self._reported]
        if not found:
            return
        self._reported |= {id(one) for one in found}
        self.on_finished(found)
        for progress in found:
            if not progress.group.plan.keep_weights:
                _drop_weights(progress)


@contextmanager
def _waiting_through_signals(noticed: Callable[[int], None]) -> Iterator[None]:
    """On Ctrl-C and SIGTERM call ``noticed`` and go on; the runs' processes save a checkpoint and end."""
    previous = {
        one: signal.signal(one, lambda number, _: noticed(number)) for one in (signal.SIGINT, signal.SIGTERM)
    }
    try:
        yield
    finally:
        for one, handler in previous.items():
            signal.signal(one, handler)


def _drop_weights(progress: Progress) -> None:
    for job in (*progress.trials, *progress.jobs):
        drop_weights(job.folder)


def _failed(failures: list[tuple[Job, str]], again: str) -> DoratuneError:
    job, error = failures[0]
    others = ", ".join(str(one.folder) for one, _ in failures[1:])
    return DoratuneError(
        f"{len(failures)} run(s) failed; the finished ones are kept",
        where=f"{job.folder} ({job.label})" + (f"; also {others}" if others else ""),
        got=error,
        fix=f"remove the cause and {again}; finished runs are not repeated",
    )
