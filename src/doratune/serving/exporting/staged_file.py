"""A large file that appears under its name only when it is complete."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from doratune.errors import InputError
from doratune.records.folders import refuse_output
from doratune.serving.files import refuse_small_disk, stopping


def refuse_taken_file(output: Path) -> None:
    """Refuse an output file that exists, or whose folder does not or may not be written to.

    Args:
        output: The file.

    Raises:
        InputError: It is so.
    """
    if os.path.lexists(output):
        raise InputError(
            "the output is already there", where="--output", got=output, fix="choose another name"
        )
    if not output.parent.is_dir():
        raise InputError(
            "the output's folder does not exist", where="--output", got=output.parent, fix="create it first"
        )
    refuse_output(output)


@contextmanager
def staged_file(output: Path, size: int) -> Iterator[Path]:
    """A file to write and then to rename, next to ``output``; at the end it is removed if it is still there.

    Args:
        output: The name that it will have.
        size: The bytes that will be written.

    Raises:
        InputError: The output cannot be written there, or the disk has too little space.
        StoppedError: SIGTERM arrived.
    """
    refuse_taken_file(output)
    refuse_small_disk(output.parent, size, "--output")
    with stopping(), tempfile.TemporaryDirectory(prefix=f".{output.name}-", dir=output.parent) as folder:
        yield Path(folder) / output.name
