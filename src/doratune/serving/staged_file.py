"""A large file that appears under its name only when it is complete."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from doratune.errors import InputError
from doratune.records.folders import refuse_output


def refuse_taken(output: Path) -> None:
    """Refuse an output file that exists, or whose folder does not or may not be written to.

    Args:
        output: The file.

    Raises:
        InputError: It is so.
    """
    if os.path.lexists(output):
        raise InputError("the output is already there", where="--output", got=output, fix="choose another name")
    if not output.parent.is_dir():
        raise InputError(
            "the output's folder does not exist", where="--output", got=output.parent, fix="create it first"
        )
    refuse_output(output)


@contextmanager
def staged_file(output: Path, size: int) -> Iterator[Path]:
    """A file to write and to rename, in the folder of ``output``; if it is still there at the end, it is removed.

    Args:
        output: The name that it will have.
        size: The bytes that will be written.

    Raises:
        InputError: The output cannot be written there, or the disk has too little space.
    """
    refuse_taken(output)
    free = shutil.disk_usage(output.parent).free
    if free < size:
        raise InputError(
            "the disk has too little space for the output",
            where=str(output.parent),
            got=f"{free / 1e9:.2f} GB free",
            expected=f"{size / 1e9:.2f} GB",
            fix="free some, or name an output on another disk",
        )
    with tempfile.TemporaryDirectory(prefix=f".{output.name}-", dir=output.parent) as folder:
        yield Path(folder) / output.name
