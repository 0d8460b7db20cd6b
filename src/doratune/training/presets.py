"""Presets: YAML files of settings. Defaults < preset < flags.

Besides settings of training a preset may hold ``include`` (another preset, whose settings it overrides),
``methods`` (settings that differ between methods) and ``compare`` (settings of the comparison only).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from importlib import resources
from pathlib import Path
from typing import Any

from doratune.errors import InputError
from doratune.methods.find import get_method, plain_name
from doratune.named_yaml import read_named, shipped_names


@dataclass(frozen=True)
class Preset:
    """The settings in a YAML file, by name.

    Attributes:
        source: The file.
        settings: Training settings.
        methods: Settings that differ between methods (``{"lora": {...}, "dora": {...}}``).
        compare: Settings of the comparison only.
    """

    source: str = "defaults"
    settings: dict[str, Any] = field(default_factory=dict)
    methods: dict[str, dict[str, Any]] = field(default_factory=dict)
    compare: dict[str, Any] = field(default_factory=dict)

    def for_method(self, method: str) -> dict[str, Any]:
        """The training settings, overridden by those of ``method``, a name or a file."""
        return {**self.settings, **self.methods.get(plain_name(method), {})}


def preset_names() -> list[str]:
    """Names of the presets that ship with doratune."""
    return shipped_names("doratune.training", "presets")


def preset_title(name: str) -> str:
    """A shipped preset's description: the comment on the first line of its file."""
    text = (resources.files("doratune.training") / "presets" / f"{name}.yaml").read_text(encoding="utf-8")
    return text.partition("\n")[0].removeprefix("#").strip()


def load_preset(name: str, *, included_by: tuple[str, ...] = ()) -> Preset:
    """Read a shipped preset by name, or any YAML file by path.

    Args:
        name: ``demo``, ``llama-7b``, ... or a path ending in .yaml or .yml.
        included_by: The chain of presets that include this one.

    Returns:
        The preset; its values are checked later, together with the flags.

    Raises:
        InputError: If there is no such preset, its YAML is malformed, or it includes itself.
    """
    chain = (*included_by, name)
    if name in included_by:
        raise InputError("a preset includes itself", where="--preset", got=" -> ".join(chain))
    values, source = read_named(
        name, kind="preset", where="--preset", package="doratune.training", folder="presets"
    )
    _check_sections(values, source)
    included = values.pop("include", None)
    base = Preset() if included is None else load_preset(_beside(included, name), included_by=chain)
    methods = {plain_name(str(method)): own for method, own in values.pop("methods", {}).items()}
    compare = values.pop("compare", {})

    def less(sections: dict[str, Any]) -> dict[str, Any]:
        """An included section, without what this file sets for all methods."""
        return {key: value for key, value in sections.items() if key not in values}

    return Preset(
        source=source,
        compare={**less(base.compare), **compare},
        methods={
            method: {**less(base.methods.get(method, {})), **methods.get(method, {})}
            for method in {**base.methods, **methods}
        },
        settings={**base.settings, **values},
    )


def _beside(included: str, by: str) -> str:
    """The path of an included file, which is relative to that of the file that includes it."""
    paths = [Path(one) for one in (by, included)]
    if any(path.suffix not in (".yaml", ".yml") for path in paths):
        return included
    return str(paths[0].parent / paths[1])


def _check_sections(values: dict[str, Any], source: str) -> None:
    included, methods = values.get("include"), values.get("methods", {})
    if not isinstance(included, str | None):
        raise InputError("a preset includes one other, by name or path", where=source, got=included)
    sections = {"methods": methods, "compare": values.get("compare", {})}
    if isinstance(methods, dict):
        for name in methods:
            get_method(str(name), where=f"{source}, methods")
        sections.update({f"methods.{name}": section for name, section in methods.items()})
    for name, section in sections.items():
        if not isinstance(section, dict):
            raise InputError(f"the section {name!r} is not a mapping", where=source, got=section)
