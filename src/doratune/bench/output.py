"""Whether a bench may write its record. No torch here."""

from __future__ import annotations

from pathlib import Path

from doratune.errors import InputError


def require_free(path: Path, *, overwrite: bool) -> None:
    """Check that a record can go to a file.

    Raises:
        InputError: The file exists and may not be replaced, or is a folder.
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
