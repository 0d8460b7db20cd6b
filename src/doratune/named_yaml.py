"""Reads YAML files that ship with doratune, or that the user gives by path."""

from __future__ import annotations

import re
from importlib import resources
from importlib.resources.abc import Traversable
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import BaseModel

from doratune.errors import InputError, did_you_mean

Model = TypeVar("Model", bound=BaseModel)


class _Loader(yaml.SafeLoader):
    """Reads 1e-4 as a number, like YAML 1.2, and refuses repeated keys; PyYAML does neither."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        """The mapping; its keys may override those merged with ``<<``, but may not repeat."""
        seen: set[tuple[str, str]] = set()
        for key, _ in node.value:
            if not isinstance(key, yaml.ScalarNode):
                continue
            if (key.tag, key.value) in seen:
                raise yaml.constructor.ConstructorError(
                    problem=f"the key {key.value!r} is repeated", problem_mark=key.start_mark
                )
            seen.add((key.tag, key.value))
        return super().construct_mapping(node, deep)


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"[-+]?[0-9]+[eE][-+]?[0-9]+$"), list("-+0123456789")
)


def read_shipped(package: str, path: str) -> Any:
    """The content of a YAML file inside ``package``."""
    return yaml.load(read_shipped_text(package, path), Loader=_Loader)


def read_shipped_text(package: str, path: str) -> str:
    """The text of a file inside ``package``."""
    return (resources.files(package) / path).read_text(encoding="utf-8")


def shipped_names(package: str, folder: str) -> list[str]:
    """Names of the YAML files in a folder of ``package``, without extension, in alphabetical order."""
    shipped = _shipped(package, folder)
    return sorted(
        path.name.removesuffix(".yaml") for path in shipped.iterdir() if path.name.endswith(".yaml")
    )


def read_definitions(package: str, folder: str, model: type[Model]) -> dict[str, Model]:
    """Read every YAML file of a folder of ``package``.

    Args:
        package: The package.
        folder: The folder in it, such as "tasks".
        model: The class that each file is validated as.

    Returns:
        The definitions by file name without its extension, in alphabetical order.

    Raises:
        pydantic.ValidationError: A file is not a valid definition; the installation is broken.
    """
    return {
        name: model.model_validate(read_shipped(package, f"{folder}/{name}.yaml"))
        for name in shipped_names(package, folder)
    }


def read_named(name: str, *, kind: str, where: str, package: str, folder: str) -> tuple[dict[str, Any], str]:
    """Read a shipped file by name, or any YAML file by path.

    Args:
        name: A name, or a path ending in .yaml or .yml.
        kind: What the file is, for messages, such as "preset".
        where: The option that named it, for messages.
        package: The package of the shipped files.
        folder: Their folder in the package.

    Returns:
        The values, and the source they were read from, for messages.

    Raises:
        InputError: There is no such file, or it is not a YAML mapping.
    """
    if Path(name).suffix in (".yaml", ".yml"):
        path = Path(name)
        if not path.is_file():
            raise InputError(f"there is no such {kind} file", where=where, got=name)
        text, source = _read(path, kind), name
    else:
        known = shipped_names(package, folder)
        if name not in known:
            raise InputError(
                f"unknown {kind}",
                where=where,
                got=name,
                expected=f"one of {', '.join(known)}, or a .yaml file",
                fix=did_you_mean(name, known),
            )
        text = (_shipped(package, folder) / f"{name}.yaml").read_text(encoding="utf-8")
        source = f"{kind} {name}"
    return _parse(text, source, kind), source


def read_mapping(path: Path, *, kind: str) -> dict[str, Any]:
    """Read a YAML file.

    Args:
        path: The file.
        kind: What it is, for messages, such as "preset".

    Raises:
        InputError: It cannot be read, or it is not a YAML mapping.
    """
    return _parse(_read(path, kind), str(path), kind)


def _read(path: Path, kind: str) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"the {kind} cannot be read", where=str(path), got=error) from error


def _shipped(package: str, folder: str) -> Traversable:
    return resources.files(package) / folder


def _parse(text: str, source: str, kind: str) -> dict[str, Any]:
    try:
        values = yaml.load(text, Loader=_Loader)  # a SafeLoader
    except (ValueError, RecursionError) as error:  # such as 40 May as a date, or brackets nested too deeply
        raise InputError(f"the {kind} cannot be read", where=source, got=error) from error
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        place = f"{source}, line {mark.line + 1}, column {mark.column + 1}" if mark else source
        raise InputError(
            f"the {kind} is not valid YAML", where=place, got=getattr(error, "problem", error)
        ) from error
    if not isinstance(values, dict):
        raise InputError(f"the {kind} is not a mapping of settings", where=source, got=type(values).__name__)
    return values
