"""Tells whether autocast is on, and turns it off around operations that choose their own dtypes."""

from __future__ import annotations

import functools
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch

NOTHING = nullcontext()
"""A context that does nothing; making one for each layer takes as long as a small operation."""

_has_autocast = functools.cache(torch.amp.is_autocast_available)


def is_autocast(device: str) -> bool:
    """Whether autocast is on for a device type; some types, such as ``meta``, have none."""
    return device != "meta" and torch.is_autocast_enabled(device)


def autocast_off(device: torch.device) -> AbstractContextManager[Any]:
    """A context in which autocast is off on ``device``."""
    kind = device.type
    if _has_autocast(kind) and torch.is_autocast_enabled(kind):
        return torch.autocast(kind, enabled=False)
    return NOTHING
