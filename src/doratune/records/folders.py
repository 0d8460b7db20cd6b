"""Checks of the folders that a user names, before anything is computed."""

from __future__ import annotations

import os
import unicodedata
from pathlib import Path

from doratune.errors import LONGEST, InputError
from doratune.hub import looks_like_path
from doratune.records.layout import OWN_FOLDERS, is_recorded, is_started

ROOM_FOR_NAMES = 256
"""Bytes reserved in a path for the files in an output folder."""


def refuse_missing_folder(name: str, what: str, *, where: str) -> None:
    """Refuse a name that can only be a folder's path if there is no such folder, without asking the hub.

    Args:
        name: The name that the user gave.
        what: What the folder should hold, for the message.
        where: Where the user named it, for the message.

    Raises:
        InputError: If it looks like a path and there is no such folder, or it is a file.
    """
    path = Path(name).expanduser()
    if path.suffix == ".gguf" or path.is_dir():
        return
    if path.is_file():
        raise InputError(f"this is a file, not a {what} folder", where=where, got=name)
    if looks_like_path(name) or path.is_symlink():
        raise InputError(f"there is no such {what} folder", where=where, got=name, fix="check the path")


def refuse_output(output: Path, *, where: str = "--output") -> None:
    """Refuse an output folder that cannot be created or written to, before anything is computed.

    Args:
        output: The folder, which need not exist.
        where: Where the user named it, for the message.

    Raises:
        InputError: It or a parent folder is a file, leads nowhere, may not be written to, or has a name that
            the system does not allow; or it is among a run's files.
    """
    if strange := [one for one in str(output) if unicodedata.category(one) in ("Cc", "Cs")]:
        raise InputError(
            "the output's name has a control character or invalid Unicode",
            where=where,
            got=f"{str(output)[:LONGEST]!r}, with {strange[0]!r}",
            fix="choose another name",
        )
    place = next(one for one in (output, *output.parents) if os.path.lexists(one))
    try:
        if not place.is_dir():
            what = "is a link that leads nowhere" if place.is_symlink() else "is a file, not a folder"
            raise InputError(f"the output {what}", where=where, got=place)
        if not os.access(place, os.W_OK | os.X_OK):
            raise InputError(
                "the output folder may not be written to",
                where=where,
                got=place,
                fix="choose another folder, or fix its permissions",
            )
        longest = os.pathconf(place, "PC_NAME_MAX")
        long = [name for name in output.parts if len(os.fsencode(name)) > longest]
        if long or len(os.fsencode(output.absolute())) + ROOM_FOR_NAMES > os.pathconf(place, "PC_PATH_MAX"):
            raise InputError("the output's name is too long", where=where, got=output)
        real = Path(os.path.realpath(output))
        for one in (real, *real.parents):
            if one.name in OWN_FOLDERS and is_started(one.parent):
                raise InputError(
                    "the output would be among a run's own files",
                    where=where,
                    got=f"{output}, in {one.name} of the run {one.parent}",
                    fix="choose another folder",
                )
    except OSError as error:
        raise InputError(
            "the output folder cannot be used", where=where, got=f"{place}: {error.strerror}"
        ) from error


def refuse_run_directory(output: Path) -> None:
    """Refuse to write a study into the directory of a run.

    Raises:
        InputError: It is one, finished or not.
    """
    if is_started(output) or is_recorded(output):
        raise InputError(
            "the output folder is a run directory",
            where="--output",
            got=output,
            expected="a folder for a study or a comparison, which holds its runs",
            fix="choose another folder",
        )
