"""Showing a study: files in a folder, a table in the terminal or JSON."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from doratune.cli.output import print_json
from doratune.records.layout import ANALYSIS_NAME, read_analysis
from doratune.records.study import StudyRecord

if TYPE_CHECKING:
    from rich.console import RenderableType


def publish_study(record: StudyRecord, output: Path, *, as_json: bool) -> None:
    """Write a study's files and show it.

    Args:
        record: What to show.
        output: Folder for study.json, study.md and report.html. What ``doratune analyze`` wrote into folders
            in it whose names begin with "analysis" becomes part of the report.
        as_json: Print JSON instead of the tables.

    Raises:
        InputError: An analysis.json there cannot be read.
    """
    from doratune.report.study.files import write_study_report

    analyses = [read_analysis(path) for path in sorted(output.glob(f"analysis*/{ANALYSIS_NAME}"))]
    paths = write_study_report(output, record, analyses)
    if as_json:
        print_json(record.to_dict())
        return
    from doratune.report.study.terminal import study_renderable

    _show(study_renderable(record), paths)


def _show(renderable: RenderableType, paths: Sequence[Path]) -> None:
    from rich.console import Console

    console = Console()
    console.print(renderable)
    console.print("written: " + ", ".join(str(path) for path in paths), highlight=False, soft_wrap=True)
