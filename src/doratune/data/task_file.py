"""A task's own YAML file: read, and refused in one short message that names the field."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any, TypeVar

from pydantic import ValidationError

from doratune.data.fields import Unfit
from doratune.errors import InputError, did_you_mean, shown
from doratune.named_yaml import read_named, read_shipped_text
from doratune.settings import Settings

Kind = TypeVar("Kind", bound=Settings)

_NAME = re.compile(r"[a-z0-9][a-z0-9._-]{0,63}")
_EXPECTED = {
    "string_type": "a text",
    "int_type": "a whole number",
    "int_from_float": "a whole number",
    "bool_type": "true or false",
    "list_type": "a list",
    "dict_type": "a mapping",
    "model_type": "a mapping",
}
"""pydantic's errors, in words for a task's file."""
_BRANCHES = {"str": "a text", "list[str]": "a list of texts"}
"""The types in a union, by pydantic's name for them in a fault's location."""
_TRUTH = 'YAML reads yes, no, on, off, true and false as truth values: write them in quotes, as "yes"'


def is_task_file(name: str) -> bool:
    """Whether a name is the path of a task's file."""
    return Path(name).suffix in (".yaml", ".yml")


def task_template() -> str:
    """A commented task file to start from."""
    return read_shipped_text("doratune.data", "template.yaml")


def read_task_file(path: str, kind: type[Kind], *, taken: Collection[str]) -> Kind:
    """Read a task's definition.

    Args:
        path: The file.
        kind: The class that describes it.
        taken: Names that are already used.

    Raises:
        InputError: There is no such file, or it does not define a task; the first fault is named.
    """
    values, source = read_named(path, kind="task", where="--task", package="doratune.data", folder="tasks")
    try:
        task = kind.model_validate(values)
    except ValidationError as error:
        raise _fault(kind, error, source) from None
    name = values["name"]
    if not _NAME.fullmatch(name) or is_task_file(name):
        raise InputError(
            "a task's name is also that of the files with its results",
            where=f"{source}, name",
            got=name,
            expected="up to 64 of a-z, 0-9, dot, dash and underscore, with a letter or digit first",
        )
    if name in taken or values.get("sample"):
        field = "name" if name in taken else "sample"
        raise InputError(
            "a built-in task has this name" if name in taken else "only built-in tasks are samples",
            where=f"{source}, {field}",
            got=values[field],
            expected="another name" if name in taken else "no such field",
        )
    return task


def _fault(kind: type[Settings], error: ValidationError, source: str) -> InputError:
    """The error for a file: its first fault, and how many more fields have one."""
    faults: dict[str, list[Any]] = {}
    for fault in error.errors(include_url=False):
        own = fault.get("ctx", {}).get("error")
        loc = [str(part) for part in fault["loc"] if part not in _BRANCHES]
        field = ".".join([*loc, *([own.field] if isinstance(own, Unfit) and own.field else [])])
        faults.setdefault(field, []).append(fault)
    field, found = next(iter(faults.items()))
    got, expected, fix = _told(kind, field, found)
    more = f"; {len(faults) - 1} more fields have faults" if len(faults) > 1 else ""
    return InputError(
        "the task's file cannot be used",
        where=f"{source}, {field}" if field else source,
        got=got,
        expected=expected + more,
        fix=fix,
    )


def _told(kind: type[Settings], field: str, faults: list[Any]) -> tuple[str, str, str | None]:
    """What was found and expected in a field, and the fix."""
    first = faults[0]
    own = first.get("ctx", {}).get("error")
    if isinstance(own, Unfit):
        return own.got or shown(_at(first["input"], own.field)), own.expected, None
    if first["type"] == "extra_forbidden":
        known = list(_fields_beside(kind, field))
        suggestion = did_you_mean(field.rpartition(".")[2], known)
        return "an unknown field", f"one of {', '.join(known)}", suggestion
    if first["type"] == "missing":
        return "nothing", "this field", "doratune tasks --template shows a whole file"
    if len(faults) > 1:
        allowed = " or ".join(
            _BRANCHES[fault["loc"][-1]] for fault in faults if fault["loc"][-1] in _BRANCHES
        )
    else:
        allowed = _EXPECTED.get(first["type"]) or first.get("ctx", {}).get("expected", first["msg"])
    return shown(first["input"]), allowed, _TRUTH if isinstance(first["input"], bool) else None


def _at(value: Any, field: str) -> Any:
    """The value at a dotted name."""
    for part in field.split(".") if field else []:
        if isinstance(value, Mapping):
            value = value.get(part)
        elif isinstance(value, list) and part.isdecimal():
            value = value[int(part)]
        else:
            value = getattr(value, part, None)
    return value


def _fields_beside(kind: type[Settings], field: str) -> Collection[str]:
    """The known fields in the place of an unknown one."""
    model: Any = kind
    for part in field.split(".")[:-1]:
        annotation = model.model_fields[part].annotation if part in model.model_fields else None
        inner = [
            one for one in (annotation, *getattr(annotation, "__args__", ())) if hasattr(one, "model_fields")
        ]
        if not inner:
            return ()
        model = inner[0]
    return model.model_fields
