"""Runs a command in a separate process and measures wall time and peak memory."""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
import time
from pathlib import Path

from doratune.errors import DoratuneError, InputError
from pipeline.record import PhaseCost

LAST_LINES = 12
"""How many lines of a failed command's output are shown."""


def run_command(command: list[str], *, log: Path, threads: int | None) -> PhaseCost:
    """Run a command to its end.

    The peak is the kernel's count for this process. A process inherits its parent's count, so it is right as
    long as the parent has held less; therefore the benchmark loads torch only after its last command.

    Args:
        command: Program and arguments.
        log: File for its output.
        threads: Threads inside an operation; None leaves them to the environment.

    Returns:
        Wall seconds from start to end, and the peak of resident memory in bytes.

    Raises:
        InputError: The command ended with exit code 2.
        DoratuneError: It ended with another exit code but 0.
    """
    environment = dict(os.environ)
    if threads is not None:
        environment.update(OMP_NUM_THREADS=str(threads), MKL_NUM_THREADS=str(threads))
    with log.open("wb") as file:
        started = time.perf_counter()
        process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=file, stderr=subprocess.STDOUT, env=environment
        )
        try:
            _, status, usage = os.wait4(process.pid, 0)
        except BaseException:
            process.kill()
            process.wait()
            raise
        seconds = time.perf_counter() - started
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise _failure(command, process.returncode, log)
    return PhaseCost(seconds=seconds, peak_bytes=usage.ru_maxrss * (1 if sys.platform == "darwin" else 1024))


def _failure(command: list[str], code: int, log: Path) -> DoratuneError:
    kind, what = (
        (InputError, "a command refused its input") if code == 2 else (DoratuneError, "a command failed")
    )
    lines = log.read_text(encoding="utf-8", errors="replace").splitlines()
    return kind(
        what,
        where=shlex.join(command),
        got="\n    ".join([f"exit code {code}", *lines[-LAST_LINES:]]),
    )
