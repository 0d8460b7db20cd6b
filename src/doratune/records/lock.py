"""A lock that lets one process at a time write to a folder."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

from doratune.errors import InputError

LOCK_NAME = ".lock"


@contextmanager
def locked(folder: Path, *, wait: bool = False) -> Iterator[None]:
    """Hold a folder's lock. The system releases it when the process ends, even by ``kill -9``.

    A process that holds it already gets it again.

    Args:
        folder: The folder, created if necessary.
        wait: Wait for the process that holds it now, instead of raising.

    Raises:
        InputError: Another process holds it.
    """
    folder.mkdir(parents=True, exist_ok=True)
    lock = FileLock(folder / LOCK_NAME, is_singleton=True)
    try:
        lock.acquire(timeout=-1 if wait else 0)
    except Timeout:
        raise InputError(
            "another process is writing to this folder",
            where=str(folder),
            fix="wait until it ends, or choose another folder",
        ) from None
    try:
        yield
    finally:
        lock.release()
