"""Presets: YAML files of settings. Defaults < preset < flags.

Besides settings of training a preset may hold ``include`` (another preset to start from), ``methods``
(settings that differ between LoRA and DoRA) and ``compare`` (settings of the comparison only).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from importlib import resources
from pathlib import Path
from typing import Any

import yaml

from doratune.errors import InputError, nearest


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


def preset_names() -> list[str]:
    """Names of the presets that ship with doratune."""
    return sorted(
        path.name.removesuffix(".yaml") for path in _shipped().iterdir() if path.name.endswith(".yaml")
    )


def load_preset(name: str) -> Preset:
    """Read a shipped preset by name, or any YAML file by path.

    Args:
        name: ``demo``, ``llama-7b``, ... or a path ending in .yaml or .yml.

    Returns:
        The preset; its values are checked later, together with the flags.

    Raises:
        InputError: If there is no such preset, or its YAML is malformed.
    """
    if Path(name).suffix in (".yaml", ".yml"):
        path = Path(name)
        if not path.is_file():
            raise InputError("there is no such preset file", where="--preset", got=name)
        text, source = path.read_text(encoding="utf-8"), name
    else:
        known = preset_names()
        if name not in known:
            close = nearest(name, known)
            raise InputError(
                "unknown preset",
                where="--preset",
                got=name,
                expected=f"one of {', '.join(known)}, or a .yaml file",
                fix=f"did you mean {close}?" if close else None,
            )
        text, source = (_shipped() / f"{name}.yaml").read_text(encoding="utf-8"), f"preset {name}"
    values = _parse(text, source)
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


def _shipped() -> Any:
    return resources.files("doratune.training") / "presets"


def _parse(text: str, source: str) -> dict[str, Any]:
    try:
        values = yaml.safe_load(text)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        place = f"{source}, line {mark.line + 1}, column {mark.column + 1}" if mark else source
        raise InputError(
            "the preset is not valid YAML", where=place, got=getattr(error, "problem", error)
        ) from error
    if not isinstance(values, dict):
        raise InputError("the preset is not a mapping of settings", where=source, got=type(values).__name__)
    sections = {section: values.get(section, {}) for section in ("methods", "compare")}
    sections.update({f"methods.{name}": section for name, section in values.get("methods", {}).items()})
    for name, section in sections.items():
        if not isinstance(section, dict):
            raise InputError(f"the section {name!r} is not a mapping", where=source, got=section)
    return values
