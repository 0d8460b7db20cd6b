"""Show a study: files in a folder, and a summary in the terminal or JSON."""

from __future__ import annotations

from pathlib import Path

from doratune.cli.output import new_console, print_json, print_paths
from doratune.records.layout import ANALYSIS_NAME
from doratune.records.storage import read_analysis
from doratune.records.study import StudyRecord
from doratune.report.files import write_report
from doratune.report.terminal import print_summary


def publish(record: StudyRecord, output: Path, *, as_json: bool, study: Path | None = None) -> None:
    """Write a study's files and show it.

    Args:
        record: What to show.
        output: Folder for study.json, report.md and report.html. What ``doratune analyze`` wrote into folders
            in it whose names begin with "analysis" becomes part of the report.
        as_json: Print JSON instead of the tables.
        study: The folder that the record was read from, where analyses are looked for too.

    Raises:
        InputError: An analysis.json there cannot be read.
    """
    folders = {folder.resolve() for folder in (output, study or output)}
    found = sorted(path for folder in folders for path in folder.glob(f"analysis*/{ANALYSIS_NAME}"))
    paths = write_report(record, output, [read_analysis(path) for path in found])
    if as_json:
        print_json(record.to_dict())
        return
    console = new_console()
    print_summary(record, console)
    print_paths(paths, console)
