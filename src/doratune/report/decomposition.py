"""The table and the sentences of an analysis of magnitude and direction."""

from __future__ import annotations

from doratune.records.analysis import AnalysisRecord, RunAnalysis
from doratune.records.study import METHOD_NAMES, StudyMethod
from doratune.report import numbers
from doratune.report.tables import NONE, Cell, Table

PAPER: dict[StudyMethod, float] = {"full": -0.62, "lora": 0.83, "dora": -0.31}
"""Correlations that the paper reports (arXiv 2402.09353, section 3.2 and figure 2)."""

NOTE = (
    "Correlation of ΔM and ΔD over layers and checkpoints, and below it the slope, ΔM per ΔD. Points of one "
    "run are no independent samples: only another seed can tell how far a correlation would vary."
)


def kinds(analysis: AnalysisRecord) -> list[str]:
    """The kinds of layers in any run, "all" first."""
    return list(dict.fromkeys(one.kind for run in analysis.runs for one in run.correlations))


def correlation_table(analysis: AnalysisRecord) -> Table:
    """One row per run; the paper's correlation, ours over all weights and of each kind."""
    named = kinds(analysis)
    columns = [Cell("Run", "method"), Cell("Paper"), *(Cell(kind) for kind in named)]
    rows = []
    for run in analysis.runs:
        found = {one.kind: one for one in run.correlations}
        cells = [
            Cell(numbers.correlation(found[kind].correlation), numbers.slope(found[kind].slope))
            if kind in found
            else Cell(NONE)
            for kind in named
        ]
        paper = Cell(numbers.correlation(PAPER.get(run.method)))
        rows.append([Cell(run.name, METHOD_NAMES[run.method]), paper, *cells])
    return Table(columns, rows)


def sources(analysis: AnalysisRecord) -> str:
    """What the paper's figures are of, and what ours."""
    steps = {len(run.steps) for run in analysis.runs}
    weights = {len({change.layer for change in run.changes}) for run in analysis.runs}
    return (
        "The paper's figures are of the query weights of VL-BART, fine-tuned on image and text; "
        f"these are of {_range(weights)} weights of {analysis.model} at {_range(steps)} checkpoints."
    )


def gain_sentences(analysis: AnalysisRecord) -> list[str]:
    """How far the gains of each DoRA run were from 1 at its end."""
    return [_gains(run) for run in analysis.runs if run.gains]


def _gains(run: RunAnalysis) -> str:
    last = [gain for gain in run.gains if gain.step == run.steps[-1]]
    mean = sum(gain.mean for gain in last) / len(last)
    spread = (sum(gain.deviation**2 for gain in last) / len(last)) ** 0.5
    farthest = max(last, key=lambda gain: gain.deviation)
    return (
        f"{run.name}: g = m / ‖V‖, which begins at 1, ended at a mean of {mean:.4f}; root mean square of "
        f"g {numbers.MINUS} 1 {spread:.2g}, most in {farthest.layer} ({farthest.deviation:.2g})."
    )


def _range(counts: set[int]) -> str:
    low, high = min(counts), max(counts)
    return f"{low:,}" if low == high else f"{low:,} to {high:,}"
