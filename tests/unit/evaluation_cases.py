"""Commands and calls that are made in one or in several processes, and how they ended in each."""

from __future__ import annotations

import io
import logging
import os
from collections.abc import Sequence
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass, field

import pytest

from doratune.cli import main as command_line
from doratune.errors import DoratuneError
from doratune.evaluation.turns import in_turns


@dataclass(frozen=True)
class Command:
    """A command.

    Attributes:
        argv: Its arguments.
        differing: Arguments that are added in single processes.
        environment: Variables that are set.
    """

    argv: Sequence[object]
    differing: dict[int, Sequence[object]] = field(default_factory=dict)
    environment: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class End:
    """How a command ended in one process."""

    code: int
    out: str
    err: str


def call(command: Command) -> End:
    """Call ``doratune`` in this process."""
    index = int(os.environ.get("RANK", "0"))
    argv = [str(word) for word in (*command.argv, *command.differing.get(index, ()))]
    out, err = io.StringIO(), io.StringIO()
    logger = logging.getLogger("doratune")
    kept = logger.handlers, logger.level, logger.propagate
    with redirect_stdout(out), redirect_stderr(err), pytest.MonkeyPatch.context() as patch:
        patch.setattr(command_line, "LINGERING", 0.0)
        for name, value in command.environment.items():
            patch.setenv(name, value)
        try:
            code = command_line.main(argv)
        except SystemExit as end:
            code = int(str(end.code))
    logger.handlers, logger.propagate = kept[0], kept[2]
    logger.setLevel(kept[1])
    return End(code, out.getvalue(), err.getvalue())


def call_all(commands: dict[str, Command]) -> dict[str, End]:
    """Call ``doratune`` several times."""
    return {name: call(command) for name, command in commands.items()}


@dataclass(frozen=True)
class Turns:
    """Batches, and the one that cannot be answered.

    Attributes:
        batches: The rows of each.
        fails: The number of the batch that fails.
    """

    batches: list[list[int]]
    fails: int | None = None


@dataclass(frozen=True)
class Taken:
    """What ``in_turns`` gave in one process: answers or an error, the batches it had, and its progress."""

    answers: list[str]
    error: tuple[str, str]
    own: list[list[int]]
    progress: list[int]


def take(turns: Turns) -> Taken:
    """Answer batches in turns, in this process and the others."""
    own: list[list[int]] = []
    progress: list[int] = []

    def answer(batch: list[int]) -> list[str]:
        own.append(batch)
        if turns.fails is not None and batch == turns.batches[turns.fails]:
            raise DoratuneError(f"batch {batch}")
        return [f"row {row}" for row in batch]

    try:
        answers, error = in_turns(turns.batches, answer, progress.append), ("", "")
    except DoratuneError as raised:
        answers, error = [], (type(raised).__name__, raised.message)
    return Taken(answers, error, own, progress)


def call_and_take(commands: dict[str, Command], turns: dict[str, Turns]) -> tuple[dict, dict]:
    """Both, in this process."""
    ends = call_all(commands)
    return ends, {name: take(one) for name, one in turns.items()}
