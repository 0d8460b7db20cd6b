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
from pathlib import Path

from packaging.requirements import Requirement

ROOT = Path(__file__).parents[2]
ENVIRONMENTS = ROOT / "build" / "compat"
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
EXTRAS = ("bnb", "cli")
EVERYTHING = "everything"

CORNERS: Mapping[str, tuple[str, ...]] = {
    "oldest": (EVERYTHING,),
    "old-peft": ("peft",),
    "old-transformers": ("transformers",),
    "newest": (),
}
"""The corners, and which libraries each has in the oldest release; pip chooses the newest of the others."""

SHOWN = ("torch", "transformers", "peft", "trl", "accelerate")
TESTS = (
    "tests/unit/test_internals.py",
    "tests/unit/peft",
    "tests/unit/speedups",
    "tests/unit/training",
    "tests/numerics",
    "tests/compat",
)
"""What touches other libraries' insides, and a run from training to evaluation."""


def oldest() -> dict[str, str]:
    """The oldest release of each library that the base install and the extras allow."""
    lines = [
        *PROJECT["dependencies"],
        *(line for name in EXTRAS for line in PROJECT["optional-dependencies"][name]),
    ]
    return {
        one.name: bound.version
        for one in map(Requirement, lines)
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
    bounds, chosen = oldest(), CORNERS[corner]
    # The newest PyTorch may be a build of gigabytes; what is tested everywhere else is in constraints.txt.
    constraints = [
        f"{name}=={bounds[name]}" for name in (bounds if EVERYTHING in chosen else chosen) if name != "torch"
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
    subprocess.run([*install, "-c", pins, "-e", f"{ROOT}[{','.join(EXTRAS)}]", *tests], check=True)
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
        code = subprocess.run([*pytest, "--dist", "loadfile", *TESTS], cwd=ROOT).returncode
        minutes = (time.monotonic() - started) / 60
        rows.append((corner, f"{'failed' if code else 'passed'} in {minutes:.0f} min", versions(python)))
    print()
    for corner, outcome, found in rows:
        print(f"{corner:18} {outcome:22} {found}")
    return int(any(not outcome.startswith("passed") for _, outcome, _ in rows))


if __name__ == "__main__":
    sys.exit(main())
