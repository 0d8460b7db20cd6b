"""Tests what depends on other libraries' releases with the oldest and the newest that pyproject.toml allows.

``make compat`` runs it. Each corner of the ranges gets a virtual environment, which is kept. Arguments choose
corners by name.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
import tomllib
import venv
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from packaging.requirements import Requirement

ROOT = Path(__file__).parents[2]
ENVIRONMENTS = ROOT / "build" / "compat"
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]

ENGINE_TESTS = ("tests/unit/peft", "tests/numerics")
TESTS = (
    "tests/unit/test_internals.py",
    "tests/unit/speedups",
    "tests/unit/training",
    "tests/compat",
    *ENGINE_TESTS,
)
"""What touches other libraries' insides, and a run from training to evaluation."""


@dataclass(frozen=True)
class Corner:
    """A corner of the ranges.

    Attributes:
        oldest: Libraries in the oldest release allowed; None: all. pip chooses the newest of the others.
        engine_only: Only the base install's ranges hold, so only the engine is tested.
    """

    oldest: tuple[str, ...] | None = ()
    engine_only: bool = False

    @property
    def extras(self) -> tuple[str, ...]:
        """The extras whose ranges hold."""
        return ("bnb",) if self.engine_only else ("bnb", "cli")


CORNERS: Mapping[str, Corner] = {
    "oldest": Corner(oldest=None),
    "old-peft": Corner(oldest=("peft",)),
    "old-transformers": Corner(oldest=("transformers",), engine_only=True),
    "newest": Corner(),
}

SHOWN = ("torch", "transformers", "peft", "trl", "accelerate")


def requirements(*extras: str) -> list[Requirement]:
    """What the base install and the extras require; of two ranges of a library the extra's is the last."""
    optional = PROJECT["optional-dependencies"]
    return [
        Requirement(line)
        for lines in (PROJECT["dependencies"], *map(optional.get, extras))
        for line in lines or ()
    ]


def oldest(*extras: str) -> dict[str, str]:
    """The oldest release of each library that the base install and the extras allow."""
    return {
        one.name: bound.version
        for one in requirements(*extras)
        for bound in one.specifier
        if bound.operator == ">="
    }


def build(corner: str) -> Path:
    """Install a corner's environment.

    Returns:
        Its interpreter.

    Raises:
        subprocess.CalledProcessError: pip cannot install it.
    """
    folder = ENVIRONMENTS / corner
    python = folder / "bin" / "python"
    if not python.exists():
        venv.create(folder, with_pip=True)
    chosen = CORNERS[corner]
    bounds = oldest(*chosen.extras)
    # The newest PyTorch may be a build of gigabytes; what is tested everywhere else is in constraints.txt.
    constraints = [
        f"{name}=={bounds[name]}"
        for name in (bounds if chosen.oldest is None else chosen.oldest)
        if name != "torch"
    ]
    constraints += [
        line for line in (ROOT / "constraints.txt").read_text().splitlines() if line.startswith("torch==")
    ]
    pins = folder / "constraints.txt"
    pins.write_text("\n".join(constraints) + "\n", encoding="utf-8")
    install = [python, "-m", "pip", "install", "--quiet", "--upgrade", "--upgrade-strategy", "eager"]
    tests = [
        line for line in PROJECT["optional-dependencies"]["dev"] if line.startswith(("pytest", "hypothesis"))
    ]
    if chosen.engine_only:  # tests train with TRL, and read files with some of the others
        tests += [one.name for one in requirements("cli") if one.name not in bounds]
    subprocess.run([*install, "-c", pins, "-e", f"{ROOT}[{','.join(chosen.extras)}]", *tests], check=True)
    return python


def versions(python: Path) -> str:
    """The releases that a corner has of the libraries that matter most."""
    listed = subprocess.run(
        [python, "-m", "pip", "list", "--format", "json"], capture_output=True, check=True
    )
    found = {one["name"]: one["version"] for one in json.loads(listed.stdout)}
    return ", ".join(f"{name} {found[name]}" for name in SHOWN)


def main() -> int:
    """Try the corners and print a table.

    Returns:
        0 if all tests pass in all of them, otherwise 1.
    """
    rows: list[tuple[str, str, str]] = []
    for corner in sys.argv[1:] or CORNERS:
        started = time.monotonic()
        try:
            python = build(corner)
        except subprocess.CalledProcessError:
            rows.append((corner, "cannot be installed", ""))
            continue
        # Warnings that older releases raise themselves do not fail a test.
        pytest = [
            python,
            "-m",
            "pytest",
            "-q",
            "-W",
            "default",
            "-m",
            "not slow",
            "-n",
            os.environ.get("WORKERS", "2"),
        ]
        tests = ENGINE_TESTS if CORNERS[corner].engine_only else TESTS
        code = subprocess.run([*pytest, "--dist", "loadfile", *tests], cwd=ROOT).returncode
        minutes = (time.monotonic() - started) / 60
        rows.append((corner, f"{'failed' if code else 'passed'} in {minutes:.0f} min", versions(python)))
    print()
    for corner, outcome, found in rows:
        print(f"{corner:18} {outcome:22} {found}")
    return int(any(not outcome.startswith("passed") for _, outcome, _ in rows))


if __name__ == "__main__":
    sys.exit(main())
