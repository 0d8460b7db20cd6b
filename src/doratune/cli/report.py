"""``doratune report``."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Annotated

import tyro
from tyro.conf import Positional

from doratune.cli.parse import parse
from doratune.cli.rendering import publish
from doratune.settings import LaxPath, Settings

ABOUT = """Compare runs that exist: the table, comparison.json, comparison.md and report.html.

Examples:
  doratune report runs/lora runs/dora --output runs/report
  doratune report runs/demo/base runs/demo/lora runs/demo/dora --title "First run" --output docs/first
"""


class ReportCommand(Settings):
    """The flags of ``doratune report``."""

    runs: Annotated[list[str], Positional]
    """Run directories."""
    output: LaxPath
    """Folder for the table and the report."""
    title: str = "LoRA and DoRA compared"
    """Heading of the report."""
    as_json: Annotated[bool, tyro.conf.arg(name="json")] = False
    """Print the comparison as JSON."""


def main(argv: list[str]) -> int:
    """Run the verb."""
    command = parse(ReportCommand, argv, verb="report", about=ABOUT)

    from doratune.study.comparison import build_comparison

    comparison = build_comparison(
        [Path(run) for run in command.runs],
        title=command.title,
        reproduce=shlex.join(["doratune", "report", *argv]),
    )
    publish(comparison, command.output, as_json=command.as_json)
    return 0
