"""Showing a comparison or a study: files in a folder, a table in the terminal or JSON."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from doratune.cli.output import print_json
from doratune.records.comparison import Comparison
from doratune.records.layout import ANALYSIS_NAME, read_analysis
from doratune.records.study import StudyRecord
from doratune.report.files import write_comparison, write_report

if TYPE_CHECKING:
    from rich.console import RenderableType


def publish(comparison: Comparison, output: Path, *, as_json: bool) -> None:
    """Write the report's files and show the comparison.

    Args:
        comparison: What to show.
        output: Folder for comparison.json, comparison.md and report.html.
        as_json: Print JSON instead of the table.
    """
    paths = write_comparison(comparison, output)
    if as_json:
        print_json(comparison.to_dict())
        return
    from doratune.report.terminal import comparison_renderable

    _show(comparison_renderable(comparison), paths)


def publish_study(record: StudyRecord, output: Path, *, as_json: bool) -> None:
    """Write a study's files and show it.

    Args:
        record: What to show.
        output: Folder for study.json, report.md and report.html. What ``doratune analyze`` wrote into folders
            in it whose names begin with "analysis" becomes part of the report.
        as_json: Print JSON instead of the tables.

    Raises:
        InputError: An analysis.json there cannot be read.
    """
    analyses = [read_analysis(path) for path in sorted(output.glob(f"analysis*/{ANALYSIS_NAME}"))]
    paths = write_report(record, output, analyses)
    if as_json:
        print_json(record.to_dict())
        return
    from rich.console import Console

    from doratune.report.terminal import print_summary

    print_summary(record, Console())
    _show_paths(paths)


def _show(renderable: RenderableType, paths: Sequence[Path]) -> None:
    from rich.console import Console

    Console().print(renderable)
    _show_paths(paths)


def _show_paths(paths: Sequence[Path]) -> None:
    from rich.console import Console

    console = Console()
    console.print("written: " + ", ".join(str(path) for path in paths), highlight=False, soft_wrap=True)
