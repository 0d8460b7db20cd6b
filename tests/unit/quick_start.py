"""Processes that need not import the libraries: forks of a server which has done it once.

A new Python takes ten seconds of CPU for its imports, and its work on a tiny model takes less. A process from
here has its starter's environment, working folder, output and process group, as any other has. What must be
true of a Python that has imported nothing is tested with one: ``subprocess``, or "spawn" itself.
"""

from __future__ import annotations

import gc
import multiprocessing
import os
import runpy
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from multiprocessing import forkserver, reduction
from multiprocessing.context import ForkServerContext, ForkServerProcess
from pathlib import Path
from typing import Any

import pytest
import torch

IMPORTED = [
    "doratune.training.train",
    "doratune.evaluation.evaluate",
    "doratune.bench.step.loops",
    "doratune.bench.op.memory",
    "torch.distributed.launcher.api",
]
_get_context = multiprocessing.get_context


class _Process(ForkServerProcess):
    _given: Any

    def __getstate__(self) -> dict[str, Any]:
        output = reduction.DupFd(1), reduction.DupFd(2)
        return {**self.__dict__, "_given": (dict(os.environ), os.getpgrp(), output)}

    def run(self) -> None:
        environment, group, output = self._given
        os.environ.clear()
        os.environ.update(environment)
        os.setpgid(0, group)
        for descriptor, given in enumerate(output, start=1):
            os.dup2(given.detach(), descriptor)
        gc.freeze()  # a collection need not look through what the server imported
        # Processes that this one starts are forks of the same server.
        forkserver._forkserver.ensure_running = lambda: None
        multiprocessing.get_context = quick_context
        super().run()


class _Context(ForkServerContext):
    Process = _Process


def quick_context(method: str | None = None) -> Any:
    """What ``multiprocessing.get_context`` returns, but that "spawn" forks a server with the imports.

    On a machine with a GPU it does not: a fork of a process that has looked for GPUs cannot use them.
    """
    if method != "spawn" or torch.cuda.is_available():
        return _get_context(method)
    forkserver.set_forkserver_preload(IMPORTED)
    return _Context()


@contextmanager
def quick_starts() -> Iterator[None]:
    """Let the package start its processes so."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(multiprocessing, "get_context", quick_context)
        yield


def start(
    work: Callable[..., object],
    *arguments: object,
    out: Path | None = None,
    err: Path | None = None,
    alone: bool = False,
) -> multiprocessing.Process:
    """Start a process that calls a function.

    Args:
        work: A function of a module that the process can import.
        *arguments: Its arguments.
        out: A file that its output is added to; None: it goes where this process's does.
        err: The same for its errors.
        alone: In a process group to itself, which has the number of the process.
    """
    process = quick_context("spawn").Process(target=_begin, args=(work, arguments, (out, err), alone))
    process.start()
    return process


def run_python(
    *command: object,
    cwd: Path,
    variables: Mapping[str, str] | None = None,
    before: Callable[[], None] | None = None,
    seconds: float = 300,
) -> subprocess.CompletedProcess[str]:
    """Run ``python SCRIPT ...`` or ``python -m MODULE ...``, and return how it ended.

    Args:
        *command: What follows ``python``.
        cwd: The working folder.
        variables: Added to the environment.
        before: Called in the process first.
        seconds: How long it may take.
    """
    words = [str(word) for word in command]
    with tempfile.TemporaryDirectory(prefix="doratune-") as scratch:
        files = Path(scratch, "out"), Path(scratch, "err")
        process = start(python, words, cwd, dict(variables or {}), before, out=files[0], err=files[1])
        process.join(seconds)
        process.kill()
        assert process.exitcode is not None, f"{words} took more than {seconds} s"
        out, err = (file.read_text(encoding="utf-8") for file in files)
    return subprocess.CompletedProcess(words, process.exitcode, out, err)


def python(
    words: Sequence[str],
    cwd: Path,
    variables: Mapping[str, str] | None = None,
    before: Callable[[], None] | None = None,
) -> None:
    """Be ``python SCRIPT ...`` or ``python -m MODULE ...``; for ``start``. See ``run_python``."""
    os.chdir(cwd)
    os.environ.update(variables or {})
    if before is not None:
        before()
    if words[0] == "-m":
        sys.argv = list(words[1:])
        sys.path.insert(0, str(cwd))
        runpy.run_module(words[1], run_name="__main__", alter_sys=True)
    else:
        sys.argv = list(words)
        sys.path.insert(0, str(Path(words[0]).parent))
        runpy.run_path(words[0], run_name="__main__")


def _begin(
    work: Callable[..., object],
    arguments: tuple[object, ...],
    files: tuple[Path | None, Path | None],
    alone: bool,
) -> None:
    if alone:
        os.setpgid(0, 0)
    for descriptor, file in enumerate(files, start=1):
        if file is not None:
            with file.open("ab") as opened:
                os.dup2(opened.fileno(), descriptor)
    work(*arguments)
