"""Checks a benchmark's output file."""

from __future__ import annotations

import os
from pathlib import Path

from doratune.errors import InputError
from doratune.records.folders import refuse_output


def require_free(path: Path, *, overwrite: bool) -> None:
    """Check that a record may be written to ``path``.

    Raises:
        InputError: It is a folder, a file that may not be replaced, or cannot be written where it is to be.
    """
    refuse_output(path.parent if os.path.lexists(path) else path)
    if path.is_symlink() and not path.exists():
        raise InputError("the output file is a link that leads nowhere", where="--output", got=str(path))
    if path.is_dir():
        raise InputError("the output is a folder", where="--output", got=str(path), expected="a file")
    if path.exists() and not overwrite:
        raise InputError(
            "the output file exists",
            where="--output",
            got=str(path),
            fix="choose another file, or add --overwrite to replace it",
        )
