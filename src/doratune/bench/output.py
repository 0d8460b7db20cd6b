"""Checks a benchmark's output file."""

from __future__ import annotations

from pathlib import Path

from doratune.errors import InputError


def require_free(path: Path, *, overwrite: bool) -> None:
    """Check that a record may be written to ``path``.

    Raises:
        InputError: It is a folder, or a file that may not be replaced.
    """
    if path.is_dir():
        raise InputError("the output is a folder", where="--output", got=str(path), expected="a file")
    if path.exists() and not overwrite:
        raise InputError(
            "the output file exists",
            where="--output",
            got=str(path),
            fix="choose another file, or add --overwrite to replace it",
        )
