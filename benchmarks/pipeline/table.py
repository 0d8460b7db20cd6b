"""Shows the record of ``benchmarks/pipeline`` as a table in the terminal, from 80 columns on."""

from __future__ import annotations

from statistics import median

from rich import box
from rich.console import Group
from rich.table import Table
from rich.text import Text

from pipeline.record import Phase, PipelineBenchRecord, PipelineVerdict

PHASES: tuple[tuple[str, Phase, Phase | None], ...] = (
    ("train", "doratune-train", "reference-train"),
    ("evaluate: generate", "doratune-generate", "reference-generate"),
    ("evaluate: likelihood", "doratune-likelihood", None),
)
NAMES = {
    "generate": "train + generate, times as fast",
    "likelihood": "train + likelihood, times as fast",
    "same_answers": "rows with the same answer",
}
NOTE = (
    "s: wall time of the whole command; GB: its peak resident memory; medians of {rounds} round(s). "
    "Times as fast: time of the reference's training and generation, divided by doratune's training and "
    "evaluation. All evaluate the adapter that doratune trained."
)


def pipeline_renderable(record: PipelineBenchRecord) -> Group:
    """The phases of both sides, the targets, and the rows that differ."""
    costs = Table(box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False)
    costs.add_column(f"{record.train_rows} + {record.test_rows} rows")
    for heading in ("doratune\ns", "\nGB", "reference\ns", "\nGB"):
        costs.add_column(heading, justify="right", no_wrap=True)
    for name, ours, theirs in PHASES:
        costs.add_row(name, *_cost(record, ours), *(_cost(record, theirs) if theirs else ("–", "–")))
    targets = Table(box=None, pad_edge=False, show_header=False)
    for verdict in record.verdicts:
        targets.add_row(NAMES[verdict.figure], *_verdict(verdict))
    note = Text(NOTE.format(rounds=len(record.rounds)), style="dim")
    return Group(costs, Text(), targets, Text(_differing(record)), note)


def _cost(record: PipelineBenchRecord, phase: Phase) -> tuple[str, str]:
    costs = [one.phases[phase] for one in record.rounds]
    seconds, peak = (
        median(values) for values in zip(*((c.seconds, c.peak_bytes) for c in costs), strict=True)
    )
    return f"{seconds:.1f}", f"{peak / 1e9:.2f}"


def _verdict(verdict: PipelineVerdict) -> tuple[str, Text]:
    show = "{:.1%}" if verdict.figure == "same_answers" else "{:.2f}"
    mark, style = ("✓", "green") if verdict.met else ("✗", "red")
    return show.format(verdict.measured), Text(f"≥ {show.format(verdict.at_least)} {mark}", style=style)


def _differing(record: PipelineBenchRecord) -> str:
    rows = sorted({row + 1 for one in record.rounds for row in one.same_answers.differing})
    return f"other answers in row {', '.join(map(str, rows))}" if rows else "no row has another answer"
