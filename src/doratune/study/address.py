"""The address of a run: a hash of everything that determines its result, so that no run is done twice.

File locations, settings that only affect reporting, and package versions are not part of it.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from doratune.methods.former import FORMER
from doratune.methods.method import Method
from doratune.models.builtin import BUILTIN
from doratune.records import differences
from doratune.records.files import file_sha256
from doratune.records.folders import refuse_missing_folder
from doratune.training.config import TrainConfig

RUN_SCHEMA = 1
"""Increased when the same settings mean a different run, as when a default of ``TrainConfig`` changes."""

ADDRESS_DIGITS = 10

FORMER_DEFAULTS: Mapping[str, Any] = {"warmup_steps": 100}
"""Left out of an address as they were, so that older runs are found; the defaults of today are in it."""

WITHOUT_EFFECT = differences.WITHOUT_EFFECT | {"output", "model", "data", "device_map"}
"""Settings without effect on the result, and those that enter the address as a hash of their content."""


def run_address(config: TrainConfig, *, model: str, data: str, own: Method | None = None) -> str:
    """The address of a trained run.

    Settings at their default are left out, so that a setting added later keeps old addresses valid; for
    a default that has changed, see ``FORMER_DEFAULTS``.

    Args:
        config: The whole configuration; its paths do not matter.
        model: The result of ``model_identity``.
        data: SHA-256 of the training rows.
        own: The method, if it does not ship.
    """
    settings = config.model_dump(mode="json", exclude_defaults=True, exclude=set(WITHOUT_EFFECT))
    if own is not None:
        settings["method"] = own.deciding
    elif config.method in FORMER:  # runs of older versions are found
        settings |= FORMER[config.method]
        if settings["method"] == TrainConfig.model_fields["method"].default:
            del settings["method"]
    for name, former in FORMER_DEFAULTS.items():
        settings[name] = getattr(config, name)
        if settings[name] == former:
            del settings[name]
    return address({"schema": RUN_SCHEMA, "config": settings, "model": model, "data": data})


def address(values: Mapping[str, Any]) -> str:
    """A hash of ``values``, in ``ADDRESS_DIGITS`` hex digits."""
    text = json.dumps(values, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode("utf-8")).hexdigest()[:ADDRESS_DIGITS]


MODEL_FILES = ("*.json", "merges.txt", "vocab.txt", "*.model", "*.safetensors", "*.bin")
"""The files in a model's folder that determine its results."""


def model_identity(name: str) -> str:
    """Identifies a base model without loading it: by its files' SHA-256, or for a hub model by its name.

    Raises:
        InputError: The name can only be a folder's path, and there is no such folder.
    """
    refuse_missing_folder(name, "model", where="--model")
    if name in BUILTIN:
        return f"{name}:{BUILTIN[name].sha256}"
    path = Path(name).expanduser()
    if path.is_dir():
        files = sorted(file for pattern in MODEL_FILES for file in path.glob(pattern))
        return "files:" + address({file.name: file_sha256(file) for file in files})
    return f"files:{file_sha256(path)}" if path.is_file() else f"hub:{name}"
