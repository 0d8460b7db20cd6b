"""Checks of a model's name before anything is loaded, without torch."""

from __future__ import annotations

from pathlib import Path

from doratune.errors import InputError, did_you_mean
from doratune.models.builtin import BUILTIN, folder_name
from doratune.records.layout import refuse_missing_folder


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
