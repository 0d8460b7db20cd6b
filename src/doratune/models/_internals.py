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

__all__ = ["FakeTensorMode", "gguf_reader", "setting_names"]


def setting_names(config: type[Any]) -> frozenset[str]:
    """What a configuration's class declares: its fields, or before transformers 5 its arguments."""
    if dataclasses.is_dataclass(config):
        return frozenset(field.name for field in dataclasses.fields(config))
    return frozenset(name for kind in config.__mro__ for name in inspect.signature(kind.__init__).parameters)
