"""Checks of a model's name before anything is loaded, without torch."""

from __future__ import annotations

from pathlib import Path

from doratune.errors import InputError, did_you_mean
from doratune.models.builtin import BUILTIN, folder_name
from doratune.records.folders import refuse_missing_folder
from doratune.records.run import ModelRecord

FOLDER_SOURCE = "folder "
"""How a record's ``source`` begins where the model is a folder that the user named."""


def refuse_unknown_model(name: str, *, where: str = "--model", what: str = "model") -> None:
    """Refuse a name that cannot be a model's, as far as can be told without the hub.

    Args:
        name: A built-in name, a folder, a ``.gguf`` file or a hub id.
        where: Where the user named it, for the message.
        what: What the folder should hold, for the message.

    Raises:
        InputError: It can only be a path and nothing is there, or it is a misspelt built-in name.
    """
    refuse_missing_folder(name, what, where=where)
    path = Path(name).expanduser()
    if name in BUILTIN or path.is_dir():
        return
    if path.suffix == ".gguf":
        if not path.is_file():
            raise InputError("there is no such model file", where=where, got=path, fix="check the path")
        return
    if "/" not in name and (fix := did_you_mean(name, BUILTIN)):
        raise no_such_model(name, fix, where=where)


def refuse_absent_folder(base: ModelRecord, *, where: str, fix: str) -> None:
    """Refuse a base model that was a folder and is not there: the hub is not to be asked for its name.

    A folder that was named by a relative path is looked for in the working folder.

    Args:
        base: What a record says of it.
        where: What the record belongs to, for the message.
        fix: What the user can do about it.

    Raises:
        InputError: It is not there.
    """
    if base.source.startswith(FOLDER_SOURCE) and not Path(base.name).expanduser().exists():
        raise InputError(
            "the folder with the base model is not there",
            where=where,
            got=base.name,
            expected="the folder that training started with",
            fix=fix,
        )


def source_of(name: str) -> str:
    """Where a model that is not built in comes from, in one line.

    Args:
        name: A folder, a ``.gguf`` file or a hub id.
    """
    path = Path(name).expanduser()
    if path.is_dir():
        return f"{FOLDER_SOURCE}{path}"
    return f"GGUF file {path}" if path.suffix == ".gguf" else f"hub {name}"


def cached_builtin(name: str) -> str:
    """The built-in model whose folder in some machine's cache this is; any other name unchanged.

    Older versions wrote that folder into an adapter's configuration.
    """
    path = Path(name)
    known = {folder_name(one): one for one in BUILTIN}
    if path.name in known and path.parent.name == "models" and not path.exists():
        return known[path.name]
    return name


def no_such_model(name: str, fix: str, *, where: str = "--model") -> InputError:
    """The error for a name that is not a model's."""
    return InputError(
        "no such model",
        where=where,
        got=name,
        expected=f"a built-in name ({', '.join(BUILTIN)}), a folder, a .gguf file or a hub id",
        fix=fix,
    )
