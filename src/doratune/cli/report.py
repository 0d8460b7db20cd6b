"""``doratune report``."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Annotated

import tyro
from tyro.conf import Positional

from doratune.cli.parse import parse
from doratune.cli.rendering import publish
from doratune.errors import InputError
from doratune.records.layout import STUDY_NAME, read_study
from doratune.settings import LaxPath, Settings

ABOUT = """Compare runs that exist, or report a study's folder, finished or not: the tables, study.json,
report.md and report.html.

Examples:
  doratune report runs/lora runs/dora --output runs/report
  doratune report runs/study --output runs/study
  doratune report runs/demo/base runs/demo/lora runs/demo/dora --title "First run" --output docs/first
"""


class ReportCommand(Settings):
    """The flags of ``doratune report``."""

    runs: Annotated[list[str], Positional]
    """Run directories, or the folder of one study."""
    output: LaxPath
    """Folder for the table and the report."""
    title: str | None = None
    """Heading of a comparison's report; a study has its own."""
    as_json: Annotated[bool, tyro.conf.arg(name="json")] = False
    """Print the record as JSON."""


def main(argv: list[str]) -> int:
    """Run the verb."""
    command = parse(ReportCommand, argv, verb="report", about=ABOUT)
    runs = [Path(run) for run in command.runs]
    studies = [run for run in runs if (run / STUDY_NAME).is_file()]
    if studies:
        _report_study(command, runs, studies[0])
        return 0

    from doratune.study.existing import record_of_runs

    record = record_of_runs(
        runs,
        title=command.title or "LoRA and DoRA compared",
        reproduce=shlex.join(["doratune", "report", *argv]),
    )
    publish(record, command.output, as_json=command.as_json)
    return 0


def _report_study(command: ReportCommand, runs: list[Path], study: Path) -> None:
    if len(runs) > 1 or command.title is not None:
        raise InputError(
            "a study is reported alone and has a title of its own",
            where=str(study),
            expected="its folder and --output only",
        )
    publish(read_study(study / STUDY_NAME), command.output, as_json=command.as_json)
