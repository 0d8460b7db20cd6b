"""Methods as older versions wrote them: LoRA or DoRA with switches that are now methods."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

SWITCHES = ("rslora", "norm_gradient")
FORMER: dict[str, dict[str, Any]] = {
    "rslora": {"method": "lora", "rslora": True},
    "dora-rslora": {"method": "dora", "rslora": True},
    "dora-attached-norm": {"method": "dora", "norm_gradient": True},
}
"""The settings of older versions that each of these methods replaces."""


def former_method(method: str, config: Mapping[str, Any]) -> str:
    """The method of a run that an older version may have written.

    Args:
        method: As it was written.
        config: The run's settings.
    """
    for name, settings in FORMER.items():
        if all({**config, "method": method}.get(key) == value for key, value in settings.items()):
            return name
    return method


def without_switches(config: Mapping[str, Any]) -> dict[str, Any]:
    """A run's settings, with the method in place of the switches that older versions had for it.

    Args:
        config: The settings, with the method. A switch that is on and that no method replaces stays.
    """
    written = config.get("method")  # which is checked later, and may be of another type
    method = former_method(written, config) if isinstance(written, str) else written
    replaced = FORMER.get(method, {}) if isinstance(method, str) else {}
    values = {
        key: value for key, value in config.items() if key not in SWITCHES or (value and key not in replaced)
    }
    return values if method is None else {**values, "method": method}
