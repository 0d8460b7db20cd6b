"""``doratune analyze``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from tyro.conf import Positional

from doratune.cli.parse import AsJson, command_line, parse
from doratune.records.folders import refuse_output
from doratune.settings import LaxPath, Settings

ABOUT = """Measure how training moved the magnitude and the direction of the weights, as section 3.2 of the
paper does: ΔM and ΔD of every adapted weight at every checkpoint, their correlation for each run, and how far
DoRA's g = m / ‖V‖ went from 1. Writes analysis.json and analysis.svg.

Examples:
  doratune analyze runs/full runs/lora runs/dora --output runs/analysis
  doratune train --method lora --task arc-easy --format continuation --save-steps 50
                 --keep-checkpoints 20 --output runs/lora
"""


class AnalyzeCommand(Settings):
    """The flags of ``doratune analyze``."""

    runs: Annotated[list[str], Positional]
    """Run directories of one base model, with their checkpoints."""
    output: LaxPath
    """Folder for analysis.json and analysis.svg."""
    as_json: AsJson = False
    """Print the analysis as JSON."""


def main(argv: list[str]) -> int:
    """Run the verb."""
    command = parse(AnalyzeCommand, argv, verb="analyze", about=ABOUT)

    from doratune.analysis.analyze import analyze
    from doratune.cli.output import configure_logging, new_console, print_json, print_paths
    from doratune.report.files import write_analysis
    from doratune.report.terminal import print_analysis

    configure_logging()
    refuse_output(command.output)
    analysis = analyze([Path(run) for run in command.runs], reproduce=command_line("analyze", argv))
    paths = write_analysis(analysis, command.output)
    if command.as_json:
        print_json(analysis.to_dict())
        return 0

    console = new_console()
    print_analysis(analysis, console)
    print_paths(paths, console)
    return 0
