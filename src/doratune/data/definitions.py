"""The package's YAML definitions, read into their models."""

from __future__ import annotations

from importlib.resources import files
from typing import TypeVar

import yaml

from doratune.settings import Settings

Model = TypeVar("Model", bound=Settings)


def read_definitions(folder: str, model: type[Model]) -> dict[str, Model]:
    """Read every YAML file of a folder beside this module.

    Args:
        folder: Name of the folder, such as "tasks".
        model: What each file holds.

    Returns:
        The definitions by file name without its extension, in alphabetical order.

    Raises:
        pydantic.ValidationError: A file is not a valid definition, which is a fault of the installation.
    """
    paths = [
        path for path in files("doratune.data").joinpath(folder).iterdir() if path.name.endswith(".yaml")
    ]
    return {
        path.name.removesuffix(".yaml"): model.model_validate(
            yaml.safe_load(path.read_text(encoding="utf-8"))
        )
        for path in sorted(paths, key=lambda path: path.name)
    }
