"""Settings and environment as (name, value) pairs of text."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from doratune.records.base import Scalar
from doratune.records.run import Environment


def setting_facts(settings: Mapping[str, Scalar | Sequence[Scalar]]) -> list[tuple[str, str]]:
    """Settings with their names in words."""
    return [(name.replace("_", " "), _value(value)) for name, value in settings.items()]


def _value(value: Scalar | Sequence[Scalar]) -> str:
    if not isinstance(value, str) and isinstance(value, Sequence):
        return ", ".join(_value(item) for item in value) if value else "none"
    if isinstance(value, bool):
        return "yes" if value else "no"
    return f"{value:g}" if isinstance(value, float) else str(value)


def environment_facts(environment: Environment) -> list[tuple[str, str]]:
    """The machine and the software, unknowns left out."""
    facts = [
        ("doratune", environment.doratune),
        ("commit", environment.git_commit),
        ("processor", f"{environment.cpu}, {environment.cores} cores"),
        ("GPU", environment.gpu or "none"),
        ("system", environment.platform),
        ("Python", environment.python),
        ("packages", ", ".join(f"{name} {version}" for name, version in environment.packages.items())),
    ]
    return [(name, value) for name, value in facts if value]
