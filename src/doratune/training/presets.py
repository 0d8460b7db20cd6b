"""Presets: YAML files of settings. Defaults < preset < flags.

Besides settings of training a preset may hold ``include`` (another preset to start from), ``methods``
(settings that differ between LoRA and DoRA) and ``compare`` (settings of the comparison only).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from doratune.errors import InputError
from doratune.named_yaml import read_named


@dataclass(frozen=True)
class Preset:
    """Settings by name, as a YAML file gives them.

    Attributes:
        source: The file they came from.
        settings: Settings of training.
        methods: Settings that differ between methods (``{"lora": {...}, "dora": {...}}``).
        compare: Settings of the comparison only.
    """

    source: str = "defaults"
    settings: dict[str, Any] = field(default_factory=dict)
    methods: dict[str, dict[str, Any]] = field(default_factory=dict)
    compare: dict[str, Any] = field(default_factory=dict)

    def for_method(self, method: str) -> dict[str, Any]:
        """The training settings with those of ``method`` laid over them."""
        return {**self.settings, **self.methods.get(method, {})}


def load_preset(name: str) -> Preset:
    """Read a shipped preset by name, or any YAML file by path.

    Args:
        name: ``demo``, ``llama-7b``, ... or a path ending in .yaml or .yml.

    Returns:
        The preset; its values are checked later, together with the flags.

    Raises:
        InputError: If there is no such preset, or its YAML is malformed.
    """
    values, source = read_named(
        name, kind="preset", where="--preset", package="doratune.training", folder="presets"
    )
    _check_sections(values, source)
    base = load_preset(values.pop("include")) if "include" in values else Preset()
    methods = values.pop("methods", {})
    return Preset(
        source=source,
        compare={**base.compare, **values.pop("compare", {})},
        methods={
            method: {**base.methods.get(method, {}), **methods.get(method, {})}
            for method in {**base.methods, **methods}
        },
        settings={**base.settings, **values},
    )


def _check_sections(values: dict[str, Any], source: str) -> None:
    sections = {section: values.get(section, {}) for section in ("methods", "compare")}
    sections.update({f"methods.{name}": section for name, section in values.get("methods", {}).items()})
    for name, section in sections.items():
        if not isinstance(section, dict):
            raise InputError(f"the section {name!r} is not a mapping", where=source, got=section)
