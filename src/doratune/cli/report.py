"""``doratune report``."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Annotated, Literal

import tyro
from tyro.conf import Positional

from doratune import __version__
from doratune.cli.output import new_console, print_json, print_paths
from doratune.cli.parse import AsJson, command_line, parse
from doratune.cli.rendering import publish
from doratune.errors import InputError
from doratune.records.archive import has_archive, loses_nothing, write_archive
from doratune.records.folders import refuse_output
from doratune.records.layout import (
    COMPARISON_NAME,
    RECORD_NAME,
    RUNS_NAME,
    STUDY_NAME,
    is_recorded,
    is_started,
)
from doratune.records.storage import read_study
from doratune.settings import LaxPath, Settings

ABOUT = """Compare runs that exist, or show the folder of a study or comparison again, finished or not:
the tables, study.json, report.md and report.html. Runs that differ only in their seed become one arm.

Examples:
  doratune report runs/lora runs/dora --output runs/report
  doratune report runs/lora-0 runs/lora-1 runs/dora-0 runs/dora-1 --title "Two seeds" --output runs/report
  doratune report runs/study --output runs/study
  doratune report runs/study --output results/study --archive
  doratune report --from peft-method-comparison results --output runs/peft
"""


class ReportCommand(Settings):
    """The flags of ``doratune report``."""

    runs: Annotated[list[str], Positional]
    """Run directories, or the folder of one study or comparison, or with --from that of the results."""
    output: LaxPath
    """Folder for the table and the report."""
    source: Annotated[Literal["peft-method-comparison"] | None, tyro.conf.arg(name="from")] = None
    """Results of another project, shown with the intervals that their counts allow: PEFT's own comparison of
    methods, whose files are in method_comparison/MetaMathQA/results of its repository."""
    title: str | None = None
    """Heading of the report of runs; None: the methods. A study or comparison has its own."""
    archive: bool = False
    """Also write a study's records, metrics and predictions, as runs.jsonl.gz and predictions.parquet."""
    as_json: AsJson = False
    """Print the record as JSON."""


def main(argv: list[str]) -> int:
    """Run the verb."""
    command = parse(ReportCommand, argv, verb="report", about=ABOUT)
    runs = [Path(run) for run in command.runs]
    refuse_output(command.output)
    _refuse_other_results(command, runs)
    if command.source:
        _report_peft(command, runs, command_line("report", argv))
        return 0
    studies = [run for run in runs if (run / STUDY_NAME).is_file()]
    if studies:
        _report_study(command, runs, studies[0])
        return 0

    old = [run for run in runs if _is_old_comparison(run)]
    if old:
        raise InputError(
            f"{COMPARISON_NAME} was written by an older version of doratune and can no longer be read",
            where=str(old[0] / COMPARISON_NAME),
            fix=f"doratune report {_run_folders(old[0])} --output {command.output}",
        )

    if command.archive:
        raise InputError(
            "only the runs of a study are archived", where="--archive", got=", ".join(command.runs)
        )

    from doratune.study.existing import record_of_runs

    record = record_of_runs(
        runs,
        title=command.title,
        reproduce=command_line("report", argv),
    )
    publish(record, command.output, as_json=command.as_json)
    return 0


def _report_peft(command: ReportCommand, runs: list[Path], reproduce: str) -> None:
    if len(runs) != 1 or command.title is not None or command.archive:
        raise InputError(
            "PEFT's results are reported from one folder, with their own title and no archive",
            where=f"doratune report --from {command.source}",
            got=reproduce,
            expected="the folder of the result files and --output",
        )
    if command.output.resolve().is_relative_to(runs[0].resolve()):
        raise InputError(
            "the report would be among the results, and be read as one of them next time",
            where="--output",
            got=command.output,
            fix=f"choose a folder outside of {runs[0]}",
        )
    from doratune.records.peft_results import read_peft_results
    from doratune.report.peft_comparison import as_json, view_of_peft, write_peft_comparison
    from doratune.report.terminal import print_peft_comparison

    view = view_of_peft(read_peft_results(runs[0]), reproduce, __version__)
    paths = write_peft_comparison(view, command.output)
    if command.as_json:
        print_json(as_json(view))
        return
    console = new_console()
    print_peft_comparison(view, console)
    print_paths(paths, console)


def _refuse_other_results(command: ReportCommand, shown: list[Path]) -> None:
    """Refuse to overwrite the record of a study whose runs are there, or to write into a run's folder.

    The study or run could no longer be resumed or reported. An archive is replaced only by one that has all
    of its runs.
    """
    output, fix = command.output, "choose another folder"
    if output.resolve() in [folder.resolve() for folder in shown if folder.is_dir()] and not is_recorded(
        output
    ):
        return
    if is_started(output) or is_recorded(output):
        held = "a run"
    elif (output / STUDY_NAME).is_file() and (output / RUNS_NAME).is_dir():
        held = "a study or comparison with its runs"
    elif has_archive(output):
        same = any(loses_nothing(output, folder) for folder in shown)
        if same and command.archive:
            return
        held = f"the archive of {'this study' if same else 'runs that this report lacks'}"
        fix = f"give --archive, which replaces it, or {fix}" if same else fix
    else:
        return
    raise InputError(f"the output folder holds {held}", where="--output", got=output, fix=fix)


def _is_old_comparison(folder: Path) -> bool:
    """Whether a folder holds a comparison of a version before ``compare`` wrote a study's record."""
    return (folder / COMPARISON_NAME).is_file() and not (folder / RECORD_NAME).is_file()


def _run_folders(folder: Path) -> str:
    """The runs in the folder of an old comparison, or RUN... if they are gone."""
    found = sorted(str(path.parent) for path in folder.glob(f"*/{RECORD_NAME}"))
    return shlex.join(found) or "RUN..."


def _report_study(command: ReportCommand, runs: list[Path], study: Path) -> None:
    if len(runs) > 1 or command.title is not None:
        raise InputError(
            "a study is reported alone, with its own title",
            where=str(study),
            expected="its folder and --output only",
        )
    record = read_study(study / STUDY_NAME)
    archived = []
    if command.archive:
        from doratune.study.recomputed import check_against_runs

        check_against_runs(record, study)
        archived = write_archive(study, command.output)
    elif has_archive(study):
        from doratune.study.recomputed import check_against_archive

        check_against_archive(record, study)
    publish(record, command.output, as_json=command.as_json, study=study)
    if archived and not command.as_json:
        print_paths(archived, new_console())
