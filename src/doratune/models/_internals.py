"""All undocumented names of torch and transformers that loading uses.

``tests/unit/test_internals.py`` fails by name when an upgrade moves one.
"""

from __future__ import annotations

import dataclasses
import inspect
from typing import Any

# Creates tensors with a shape and a dtype but no content.
from torch._subclasses.fake_tensor import FakeTensorMode

# Its ``tqdm`` draws the bar of the GGUF conversion, which transformers' own switch does not turn off.
from transformers import modeling_gguf_pytorch_utils as gguf_reader

try:
    # How the names and tensors of a file become those of a model.
    from transformers.conversion_mapping import get_model_conversion_mapping

    # The transforms of that mapping: names alone, and several tensors into one.
    from transformers.core_model_loading import WeightConverter, WeightRenaming, rename_source_key
except ImportError:  # before transformers 5, where only prefixes of names differ
    get_model_conversion_mapping = WeightConverter = WeightRenaming = rename_source_key = None

__all__ = ["FakeTensorMode", "conversions", "gguf_reader", "renamed", "setting_names"]


def conversions(model: Any) -> tuple[list[Any], list[Any]]:
    """The renamings and the converters through which transformers loads a model's files."""
    if get_model_conversion_mapping is None:
        return [], []
    mapping = get_model_conversion_mapping(model)
    return (
        [one for one in mapping if isinstance(one, WeightRenaming)],  # pyright: ignore[reportArgumentType]
        [one for one in mapping if isinstance(one, WeightConverter)],  # pyright: ignore[reportArgumentType]
    )


def renamed(
    key: str, renamings: list[Any], converters: list[Any], prefix: str, state: dict[str, Any]
) -> tuple[str, str | None]:
    """The name in a model of a file's tensor, and the pattern of the converter that takes it, if any."""
    if rename_source_key is None:
        if key not in state and f"{prefix}.{key}" in state:
            return f"{prefix}.{key}", None
        bare = key.removeprefix(f"{prefix}.")
        return (bare, None) if key not in state and bare in state else (key, None)
    return rename_source_key(key, renamings, converters, prefix, state)


def setting_names(config: type[Any]) -> frozenset[str]:
    """What a configuration's class declares: its fields, or before transformers 5 its arguments."""
    if dataclasses.is_dataclass(config):
        return frozenset(field.name for field in dataclasses.fields(config))
    return frozenset(name for kind in config.__mro__ for name in inspect.signature(kind.__init__).parameters)
