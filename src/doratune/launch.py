"""The launcher that started this process, read from the environment before torch is imported."""

from __future__ import annotations

import contextlib
import io
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Literal

from doratune.errors import DoratuneError, InputError, OtherProcessError

Launcher = Literal["none", "torchrun", "accelerate", "mpirun", "other"]
SIZE = ("WORLD_SIZE", "PMI_SIZE", "OMPI_COMM_WORLD_SIZE", "MV2_COMM_WORLD_SIZE")
"""Where launchers put the number of processes: PyTorch's convention, then MPI's, as accelerate reads them."""
RANK = ("RANK", "PMI_RANK", "OMPI_COMM_WORLD_RANK", "MV2_COMM_WORLD_RANK")
OF_ACCELERATE = "ACCELERATE_MIXED_PRECISION"
"""``accelerate launch`` always sets it."""
OF_TORCHRUN = "TORCHELASTIC_RUN_ID"
LINGERING = 3.0
"""Seconds that a process without a message stays: a launcher ends all processes when the first one fails."""


@dataclass(frozen=True)
class Launch:
    """How this process was started.

    Attributes:
        launcher: ``none`` if it was started on its own.
        processes: The number of processes that work together.
        index: Which of them this is, from 0.
    """

    launcher: Launcher
    processes: int
    index: int

    @property
    def speaks(self) -> bool:
        """Whether this process prints; the others would say the same."""
        return self.index == 0


def launched(environment: Mapping[str, str] | None = None) -> Launch:
    """The launch of this process.

    Args:
        environment: Environment variables; None: this process's.
    """
    variables = os.environ if environment is None else environment
    size = next((name for name in SIZE if name in variables), None)
    if OF_ACCELERATE in variables:
        launcher: Launcher = "accelerate"
    elif size is None:
        return Launch("none", 1, 0)
    elif OF_TORCHRUN in variables:
        launcher = "torchrun"
    else:
        launcher = "other" if size == "WORLD_SIZE" else "mpirun"
    return Launch(launcher, _number(variables, SIZE, 1), _number(variables, RANK, 0))


def refuse_lone_process() -> None:
    """Refuse to work alone where more processes were asked for.

    Raises:
        InputError: ``accelerate launch --num_processes 2`` started one process, as it does without two GPUs.
    """
    alone = not any(name in os.environ for name in SIZE)
    # accelerate starts several processes itself only for GPUs; for others it only says where they would meet.
    if OF_ACCELERATE in os.environ and alone and "MASTER_ADDR" in os.environ:
        raise InputError(
            "accelerate launch started one process, although more were asked for",
            where="--num_processes",
            expected="a GPU for each process; on CPUs accelerate leaves the start to mpirun",
            fix="on CPUs: torchrun --nproc-per-node N -m doratune ...; for one process: --num_processes 1",
        )


def refuse_several(what: str, *, where: str | None = None, fix: str = "start it without a launcher") -> None:
    """Refuse, in one message, processes of which each would do the same work on its own.

    Args:
        what: What works in one process, as a sentence.
        where: The flag that it belongs to.
        fix: What to do.

    Raises:
        InputError: A launcher has started several processes; in the first one.
        OtherProcessError: In the others.
    """
    count = launched().processes
    if count > 1:
        with first_process_speaks():
            raise InputError(
                what,
                where=where,
                got=f"{count} processes, started by torchrun, accelerate launch or the like",
                fix=fix,
            )


@contextlib.contextmanager
def first_process_speaks() -> Iterator[None]:
    """Around what all processes do with the same outcome: only the first prints and has errors to show.

    Raises:
        OtherProcessError: In the other processes, in place of an error.
    """
    if launched().speaks:
        yield
        return
    try:
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
            yield
    except DoratuneError as error:
        raise OtherProcessError(0, error.message, exit_code=error.exit_code) from error


def _number(variables: Mapping[str, str], names: tuple[str, ...], default: int) -> int:
    found = next((variables[name] for name in names if name in variables), "")
    return int(found) if found.isdecimal() else default
