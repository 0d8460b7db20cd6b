"""Finds methods by name or by the path of their file."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

from doratune.errors import InputError, did_you_mean
from doratune.methods.method import Method
from doratune.named_yaml import read_named, shipped_names
from doratune.settings import validate

PACKAGE, FOLDER = "doratune.methods", "shipped"


@cache
def method_names() -> tuple[str, ...]:
    """The names of the shipped methods, in alphabetical order."""
    return tuple(shipped_names(PACKAGE, FOLDER))


def is_method_file(name: str) -> bool:
    """Whether a name is the path of a method's file."""
    return Path(name).suffix in (".yaml", ".yml")


def get_method(name: str, *, where: str = "--method") -> Method:
    """A shipped method by name, or any method by the path of its YAML file.

    Args:
        name: The name, or a path that ends in .yaml or .yml.
        where: What named it, for messages.

    Raises:
        InputError: There is no such method, or its file cannot be used.
    """
    if not is_method_file(name) and name in method_names():
        return _shipped(name)
    values, source = read_named(name, kind="method", where=where, package=PACKAGE, folder=FOLDER)
    method = validate(Method, values, where=source)
    if method.name in method_names():
        raise InputError(
            "a shipped method has this name",
            where=f"{source}, name",
            got=method.name,
            expected="another name",
        )
    if method.trains_all:
        raise InputError(
            "only the shipped method full trains every weight",
            where=f"{source}, peft",
            got="null",
            expected="the name of a PEFT configuration, such as LoraConfig",
        )
    refuse_match(method, source)
    return method


def refuse_match(method: Method, source: str) -> None:
    """Refuse to match what does not ship, and what has no adapter whose parameters could be counted.

    Raises:
        InputError: ``method.match`` is such a name.
    """
    name = method.match
    if name is None:
        return
    known = [one for one in method_names() if not _shipped(one).trains_all]
    if name not in known:
        raise InputError(
            "a method without an adapter cannot be matched" if name in method_names() else "unknown method",
            where=f"{source}, match",
            got=name,
            expected=f"one of {', '.join(known)}",
            fix=did_you_mean(name, known),
        )


@cache
def _shipped(name: str) -> Method:
    values, source = read_named(name, kind="method", where="--method", package=PACKAGE, folder=FOLDER)
    return validate(Method, values, where=source)


def plain_name(name: str) -> str:
    """The name of a method that was given by name or file.

    Raises:
        InputError: The file cannot be used.
    """
    return get_method(name).name if is_method_file(name) else name


def title_of(name: str) -> str:
    """A method's name in sentences; a method that does not ship has only its name."""
    return _shipped(name).title if name in method_names() else name


def own_definition(name: str) -> dict[str, Any] | None:
    """The content of an own method's file, for records; None for a shipped method.

    Raises:
        InputError: The file cannot be used.
    """
    return get_method(name).model_dump(mode="json", exclude_defaults=True) if is_method_file(name) else None
