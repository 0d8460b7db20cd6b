"""Whether the packages of the extra ``cli``, which the base install leaves out, are there and new enough."""

from __future__ import annotations

import importlib.metadata

from packaging.requirements import Requirement
from packaging.version import Version

from doratune.errors import InputError, first_of

EXTRA = "cli"
INSTALL = f"pip install 'doratune[{EXTRA}]'"
ENGINE_VERBS = ("run", "env")
"""The verbs that need only the base install."""


def check_installed(verb: str) -> None:
    """Refuse a verb whose packages are missing or too old, before anything is read or imported.

    Args:
        verb: A verb of the command line.

    Raises:
        InputError: A package is not installed, or in an older release than the verb needs.
    """
    if verb not in ENGINE_VERBS and (problem := unmet(verb)):
        raise problem


def unmet(verb: str) -> InputError | None:
    """What ``verb`` lacks of the extra ``cli``; None if everything is there."""
    needed = _of_extra()
    if missing := [one.name for one in needed if _installed(one.name) is None]:
        names = first_of(missing)
        return InputError(f"doratune {verb} needs packages that are not installed ({names}): {INSTALL}")
    if old := [one for one in needed if _is_older(one)]:
        return InputError(
            f"doratune {verb} needs newer packages",
            got=first_of([f"{one.name} {_installed(one.name)}" for one in old]),
            expected=first_of([f"{one.name}{one.specifier}" for one in old]),
            fix=f"{INSTALL}; the engine works with the installed ones (enable, speed_up, doratune run)",
        )
    return None


def _of_extra() -> list[Requirement]:
    """What the extra requires: pyproject.toml's list, which an installed doratune has in its metadata."""
    try:
        written = importlib.metadata.requires("doratune") or []
    except importlib.metadata.PackageNotFoundError:  # a source tree on the path, not installed
        return []
    return [one for one in map(Requirement, written) if _is_extra(one)]


def _is_extra(requirement: Requirement) -> bool:
    marker = requirement.marker
    return marker is not None and marker.evaluate({"extra": EXTRA}) and not marker.evaluate({"extra": ""})


def _installed(name: str) -> Version | None:
    try:
        return Version(importlib.metadata.version(name))
    except importlib.metadata.PackageNotFoundError:
        return None


def _is_older(requirement: Requirement) -> bool:
    """Whether the installed release is below the range. One above it may well work."""
    found = _installed(requirement.name)
    bounds = [Version(one.version) for one in requirement.specifier if one.operator == ">="]
    return found is not None and any(found < bound for bound in bounds)
