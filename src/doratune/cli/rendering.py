"""Showing a comparison: files in a folder, a table in the terminal or JSON."""

from __future__ import annotations

from pathlib import Path

from doratune.cli.output import print_json
from doratune.records.comparison import Comparison
from doratune.report.files import write_report


def publish(comparison: Comparison, output: Path, *, as_json: bool) -> None:
    """Write the report's files and show the comparison.

    Args:
        comparison: What to show.
        output: Folder for comparison.json, comparison.md and report.html.
        as_json: Print JSON instead of the table.
    """
    paths = write_report(comparison, output)
    if as_json:
        print_json(comparison.to_dict())
        return
    from rich.console import Console

    from doratune.report.terminal import comparison_renderable

    console = Console()
    console.print(comparison_renderable(comparison))
    console.print("written: " + ", ".join(str(path) for path in paths), highlight=False, soft_wrap=True)
