"""A new process for each run: it measures its own peak memory and starts as fresh as any other."""

from __future__ import annotations

import multiprocessing
import os
import signal
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from functools import partial
from typing import TypeVar

Result = TypeVar("Result")


def run_alone(
    function: Callable[..., Result],
    *arguments: object,
    initializer: Callable[[], None] | None = None,
    threads: int | None = None,
) -> Result:
    """Call a function in a new process and wait for what it returns or raises.

    Args:
        function: What is called; like its arguments it must be picklable.
        *arguments: Its arguments.
        initializer: Called first in the process.
        threads: How many threads its libraries compute with; None: as many as they choose.

    Raises:
        BrokenProcessPool: The process ended before the function did.
    """
    with ProcessPoolExecutor(
        max_workers=1,
        mp_context=multiprocessing.get_context("spawn"),
        initializer=partial(_begin, initializer, threads),
    ) as pool:
        return pool.submit(function, *arguments).result()


def _begin(initializer: Callable[[], None] | None, threads: int | None) -> None:
    """The process's first steps; OpenMP reads its variable when torch is imported, so it comes first."""
    if threads is not None:
        os.environ["OMP_NUM_THREADS"] = str(threads)
    if initializer is not None:
        initializer()


@contextmanager
def waiting_through_interrupts(noticed: Callable[[], None] | None = None) -> Iterator[None]:
    """Let Ctrl-C reach the runs' processes only, which save a checkpoint and say how to go on.

    Args:
        noticed: Called here on Ctrl-C.
    """
    previous = signal.signal(signal.SIGINT, lambda *_: noticed() if noticed else None)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, previous)
