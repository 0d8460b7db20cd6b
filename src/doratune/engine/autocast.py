"""Tells whether autocast is on, and turns it off around operations that choose their own dtypes."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch


def is_autocast(device: str) -> bool:
    """Whether autocast is on for a device type; some types, such as ``meta``, have none."""
    return device != "meta" and torch.is_autocast_enabled(device)


def autocast_off(device: torch.device) -> AbstractContextManager[Any]:
    """A context in which autocast is off on ``device``."""
    if torch.amp.is_autocast_available(device.type) and torch.is_autocast_enabled(device.type):
        return torch.autocast(device.type, enabled=False)
    return nullcontext()
