"""From a name, a folder, a hub id or a GGUF file to a model and its tokenizer."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from doratune.models.load import LoadedModel, load_model
    from doratune.models.precision import DTYPE_CHOICES, resolve_dtype

__all__ = ["DTYPE_CHOICES", "LoadedModel", "load_model", "resolve_dtype"]

_HOMES = {
    "DTYPE_CHOICES": "doratune.models.precision",
    "LoadedModel": "doratune.models.load",
    "load_model": "doratune.models.load",
    "resolve_dtype": "doratune.models.precision",
}


def __getattr__(name: str) -> Any:
    """Import a name when it is first used: what a study plans with needs no torch."""
    if name in _HOMES:
        return getattr(importlib.import_module(_HOMES[name]), name)
    raise AttributeError(f"module 'doratune.models' has no attribute {name!r}")
