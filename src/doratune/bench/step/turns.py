"""Processes that take turns: one computes while the others sleep. No torch here.

Each process runs its own loop and calls ``Turn.wait`` once per iteration; the parent passes the turn from one
to the next. An iteration ends when the process waits again, so the parent's clock times it as a whole, and a
slow stretch of the machine affects all processes alike.
"""

from __future__ import annotations

import multiprocessing
import os
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from multiprocessing.connection import Connection
from multiprocessing.context import SpawnProcess
from pathlib import Path
from typing import Any, Protocol, TypeVar

from doratune.bench.child import begin
from doratune.errors import DoratuneError

Item = TypeVar("Item")

SECONDS_TO_END = 10
"""The time a process has to exit after its report."""


class TurnsOverError(Exception):
    """Raised in a process that waits for its turn: there are no more turns."""


class Turn(Protocol):
    """A loop's view of the turns."""

    def wait(self, outcome: Any = None) -> None:
        """End the turn with its outcome, and return when the next one begins.

        Raises:
            TurnsOverError: There are no more turns.
        """
        ...


class Alone:
    """For a single loop in this process: the next turn begins at once.

    Args:
        turns: How many turns there are.

    Attributes:
        steps: The turns so far.
    """

    def __init__(self, turns: int) -> None:
        self.steps: list[Step] = []
        self._turns = turns
        self._start: float | None = None

    def wait(self, outcome: Any = None) -> None:
        """See ``Turn``."""
        if self._start is not None:
            self.steps.append(Step((time.perf_counter() - self._start) * 1e3, outcome))
        if len(self.steps) == self._turns:
            raise TurnsOverError
        self._start = time.perf_counter()


class PipedTurn:
    """The turns of a child process, given by the parent through a pipe."""

    def __init__(self, pipe: Connection) -> None:
        self._pipe = pipe

    def wait(self, outcome: Any = None) -> None:
        """End the turn with its outcome, and sleep until the next one begins.

        Raises:
            TurnsOverError: There are no more turns.
        """
        self._pipe.send(outcome)
        try:
            comes = self._pipe.recv()
        except EOFError:  # the parent is gone
            comes = False
        if not comes:
            raise TurnsOverError


Work = Callable[[Turn], Any]
"""What a process does; the result is its report. It is pickled, and its module is imported before the process
is set up, so libraries that print or read the environment must be imported inside it."""


@dataclass(frozen=True)
class Step:
    """One turn of one process.

    Attributes:
        milliseconds: From the start of the turn to its end.
        outcome: What the process returned at the end of the turn.
    """

    milliseconds: float
    outcome: Any


@dataclass(frozen=True)
class _Worker:
    name: str
    process: SpawnProcess
    pipe: Connection
    errors: Path

    def step(self) -> Step:
        """Give the process a turn.

        Raises:
            DoratuneError: See ``receive``.
        """
        start = time.perf_counter()
        self.send(True)
        outcome = self.receive()
        return Step((time.perf_counter() - start) * 1e3, outcome)

    def send(self, comes: bool) -> None:
        """Tell the process whether it has another turn; if it has died, ``receive`` raises."""
        with suppress(BrokenPipeError, ConnectionResetError):
            self.pipe.send(comes)

    def receive(self) -> Any:
        """What the process sends next.

        Raises:
            DoratuneError: The process raised it, or died for any other reason.
        """
        try:
            message = self.pipe.recv()
        except (EOFError, ConnectionResetError):
            self.process.join()
            lines = self.errors.read_text(encoding="utf-8", errors="replace").strip().splitlines()
            raise DoratuneError(
                "a benchmark process died",
                where=self.name,
                got=lines[-1] if lines else f"exit code {self.process.exitcode}",
            ) from None
        if isinstance(message, DoratuneError):
            raise message
        return message


class Workers:
    """The parent's view: processes that all wait for their turn."""

    def __init__(self, workers: Sequence[_Worker]) -> None:
        self._workers = workers

    def round(self, number: int) -> dict[str, Step]:
        """Give each process one turn; each round begins with a different process.

        Args:
            number: The number of the round.

        Returns:
            Each process's step, by name.

        Raises:
            DoratuneError: A process failed.
        """
        return {worker.name: worker.step() for worker in rotated(self._workers, number)}

    def finish(self) -> dict[str, Any]:
        """End the turns.

        Returns:
            Each process's report, by name.

        Raises:
            DoratuneError: A process failed.
        """
        reports = {}
        for worker in self._workers:
            worker.send(False)
            reports[worker.name] = worker.receive()
        for worker in self._workers:
            worker.process.join(SECONDS_TO_END)
        return reports


@contextmanager
def workers(works: Mapping[str, Work]) -> Iterator[Workers]:
    """Start a process for each work and wait until all are ready; none outlives the context.

    Raises:
        DoratuneError: A process failed.
    """
    context = multiprocessing.get_context("spawn")
    with tempfile.TemporaryDirectory(prefix="doratune-") as folder:
        started = []
        try:
            for name, work in works.items():
                ours, theirs = context.Pipe()
                errors = Path(folder) / name
                process = context.Process(target=_live, args=(work, theirs, errors), name=name)
                process.start()
                theirs.close()  # so that a process's death closes the pipe
                started.append(_Worker(name, process, ours, errors))
            for worker in started:
                worker.receive()
            yield Workers(started)
        finally:
            for worker in started:
                worker.process.terminate()
                worker.process.join()


def rotated(items: Sequence[Item], number: int) -> list[Item]:
    """The items in order, rotated so that each round begins with a different one."""
    first = number % len(items)
    return [*items[first:], *items[:first]]


def _live(work: Work, pipe: Connection, errors: Path) -> None:
    begin()
    # By default an idle pool's threads sleep after some milliseconds. If told to spin for ever, they would
    # take time from the other processes; if told to sleep at once, a step takes up to 1.7 times as long.
    for name in ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT"):
        os.environ.pop(name, None)
    for path, descriptor in ((os.devnull, 1), (str(errors), 2)):
        file = os.open(path, os.O_WRONLY | os.O_CREAT)
        os.dup2(file, descriptor)
        os.close(file)
    try:
        report = work(PipedTurn(pipe))
    except DoratuneError as error:
        pipe.send(error)
    else:
        pipe.send(report)
