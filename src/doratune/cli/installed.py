"""Whether the packages of the extra ``cli``, which the base install leaves out, are installed."""

from __future__ import annotations

import importlib.metadata

from packaging.requirements import Requirement

from doratune.errors import InputError, first_of

EXTRA = "cli"
INSTALL = f"pip install 'doratune[{EXTRA}]'"
ENGINE_VERBS = ("run", "env")
"""The verbs that need only the base install."""


def check_installed(verb: str) -> None:
    """Refuse a verb whose packages are not installed, before anything is read or imported.

    Args:
        verb: A verb of the command line.

    Raises:
        InputError: A package is missing.
    """
    if verb not in ENGINE_VERBS and (missing := missing_packages()):
        names = first_of(missing)
        raise InputError(f"doratune {verb} needs packages that are not installed ({names}): {INSTALL}")


def missing_packages() -> list[str]:
    """The distributions of the extra ``cli`` that are not installed.

    The list is the one in pyproject.toml, which an installed doratune carries in its metadata.
    """
    try:
        written = importlib.metadata.requires("doratune") or []
    except importlib.metadata.PackageNotFoundError:  # a source tree on the path, not installed
        return []
    requirements = map(Requirement, written)
    return [one.name for one in requirements if _of_extra(one) and not _is_installed(one.name)]


def _of_extra(requirement: Requirement) -> bool:
    marker = requirement.marker
    return marker is not None and marker.evaluate({"extra": EXTRA}) and not marker.evaluate({"extra": ""})


def _is_installed(name: str) -> bool:
    try:
        importlib.metadata.distribution(name)
    except importlib.metadata.PackageNotFoundError:
        return False
    return True
