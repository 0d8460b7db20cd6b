"""The address of a run: a hash of everything that its result comes from, so that no run is done twice.

Not part of it: where files lie, what is only reported, and the versions of packages.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from doratune.models.builtin import BUILTIN
from doratune.records.layout import file_sha256
from doratune.training.config import TrainConfig

RUN_SCHEMA = 1
"""Goes up when the same settings mean another run, as when a default of ``TrainConfig`` changes."""

WITHOUT_EFFECT = frozenset(
    {"output", "model", "data", "save_steps", "keep_checkpoints", "report_to", "device_map"}
)
"""Settings that say nothing about the result, or that are told by a hash of what they point to."""


def run_address(config: TrainConfig, *, model: str, data: str) -> str:
    """The address of a trained run.

    Settings at their default are left out, so that a setting added later leaves old addresses alone.

    Args:
        config: The whole configuration; its paths do not matter.
        model: What ``model_identity`` gives.
        data: SHA-256 of the training rows.
    """
    settings = config.model_dump(mode="json", exclude_defaults=True, exclude=set(WITHOUT_EFFECT))
    return address({"schema": RUN_SCHEMA, "config": settings, "model": model, "data": data})


def address(values: Mapping[str, Any]) -> str:
    """Ten hex digits that stand for ``values``."""
    text = json.dumps(values, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode("utf-8")).hexdigest()[:10]


MODEL_FILES = ("config.json", "tokenizer*.json", "tokenizer.model", "*.safetensors", "*.bin")
"""What of a model's folder decides its results."""


def model_identity(name: str) -> str:
    """What tells a base model apart without loading it: its files' SHA-256, else its name."""
    if name in BUILTIN:
        return f"{name}:{BUILTIN[name].sha256}"
    path = Path(name).expanduser()
    if path.is_dir():
        files = sorted(file for pattern in MODEL_FILES for file in path.glob(pattern))
        return "files:" + address({file.name: file_sha256(file) for file in files})
    return f"files:{file_sha256(path)}" if path.is_file() else f"hub:{name}"
