"""A virtual environment with what an installation brings and nothing else, made of links to what is here."""

from __future__ import annotations

import importlib.metadata
import os
import subprocess
import sysconfig
import venv
from collections.abc import Iterable
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name


class LinkedEnvironment:
    """A virtual environment outside the one that runs the tests.

    Args:
        folder: Where it is made.
        requirements: What to install, as pip takes it, with all that it brings. Versions are those at hand.
        extra: Those with this extra as their marker are among them.
    """

    def __init__(self, folder: Path, requirements: Iterable[str], *, extra: str = "") -> None:
        venv.create(folder, symlinks=True)
        self.python = folder / "bin" / "python"
        paths = {"base": str(folder), "platbase": str(folder)}
        self.packages = Path(sysconfig.get_path("purelib", "venv", paths))
        for name in brought(requirements, extra=extra):
            distribution = importlib.metadata.distribution(name)
            for place in {file.parts[0] for file in distribution.files or ()} - {"..", "__pycache__"}:
                if not (self.packages / place).exists():  # some distributions share a folder
                    (self.packages / place).symlink_to(str(distribution.locate_file(place)))

    def run(self, *command: object, cwd: Path) -> subprocess.CompletedProcess[str]:
        """Run one of its programs, ``python`` or an entry point."""
        program, *arguments = map(str, command)
        return subprocess.run(
            [str(self.python.with_name(program)), *arguments],
            cwd=cwd,
            env={name: value for name, value in os.environ.items() if name != "PYTHONPATH"},
            capture_output=True,
            text=True,
            timeout=300,
        )


def brought(requirements: Iterable[str], *, extra: str = "") -> set[str]:
    """The distributions that an installation of ``requirements`` brings here."""
    found: set[str] = set()
    seen: set[tuple[str, str]] = set()
    left = [(Requirement(one), extra) for one in requirements]
    while left:
        one, of = left.pop()
        if one.marker is not None and not one.marker.evaluate({"extra": of}):
            continue
        name = canonicalize_name(one.name)
        found.add(name)
        for wanted in {"", *one.extras}:
            if (name, wanted) not in seen:
                seen.add((name, wanted))
                left += [(Requirement(line), wanted) for line in importlib.metadata.requires(name) or []]
    return found
