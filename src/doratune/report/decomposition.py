"""The table and the sentences of an analysis of magnitude and direction."""

from __future__ import annotations

from doratune.methods.find import title_of
from doratune.records.analysis import AnalysisRecord, RunAnalysis
from doratune.report import numbers, paper
from doratune.report.blocks import NONE, Entry, Table

CORRELATION_NOTE = (
    "Correlation of ΔM and ΔD over layers and checkpoints; the second figure is the slope, ΔM per ΔD. The "
    "points of one run are not independent samples: only other seeds can tell how far a correlation would "
    "vary."
)
CHANGE_NOTE = (
    "ΔM is the mean change of the norm of a weight's rows, ΔD the mean of 1 − cosine between a row and the "
    "same row of the base model (arXiv 2402.09353, equations 3 and 4). The paper takes a negative "
    "correlation, which it found for full fine-tuning, as a sign of finer learning."
)
CHANGE_MARKS = (
    "A mark is one weight at one checkpoint; the later the checkpoint, the stronger the mark. Every run has "
    "its own axes."
)
GAIN_NOTE = (
    "g = m / ‖V‖ is the factor by which DoRA multiplies a row. It is 1 before the first step; the figure "
    "shows the root mean square of g − 1 over the outputs of a layer, averaged over the layers of a kind."
)


def kinds(analysis: AnalysisRecord) -> list[str]:
    """The kinds of layers in any run, "all" first."""
    return list(dict.fromkeys(one.kind for run in analysis.runs for one in run.correlations))


def correlation_table(analysis: AnalysisRecord) -> Table:
    """One row per run: the paper's correlation, and ours over all weights and for each kind."""
    named = kinds(analysis)
    columns = [Entry("Run", "method"), Entry("Paper"), *(Entry(kind) for kind in named)]
    rows = []
    for run in analysis.runs:
        found = {one.kind: one for one in run.correlations}
        entries = [
            Entry(numbers.correlation(found[kind].correlation), numbers.slope(found[kind].slope))
            if kind in found
            else Entry(NONE)
            for kind in named
        ]
        published = Entry(numbers.correlation(paper.CORRELATION.get(run.method)))
        rows.append([Entry(run.name, title_of(run.method)), published, *entries])
    caption = f"Correlation of the change of magnitude and of direction, {analysis.model}"
    return Table(caption, columns, rows)


def sources(analysis: AnalysisRecord) -> str:
    """The models and weights behind the paper's figures and ours."""
    steps = {len(run.steps) for run in analysis.runs}
    weights = {len({change.layer for change in run.changes}) for run in analysis.runs}
    return (
        "The paper's figures are of the query weights of VL-BART, fine-tuned on image and text; "
        f"these are of {_range(weights)} weights of {analysis.model} at {_range(steps)} checkpoints."
    )


def rounding_sentences(analysis: AnalysisRecord) -> list[str]:
    """Which runs have weights that did not move."""
    lines = []
    for run in analysis.runs:
        still = sum(change.rounding for change in run.changes)
        if still:
            lines.append(
                f"{run.name}: {still:,} of {len(run.changes):,} weights, each checkpoint's counted, moved by "
                "no more than rounding and are in no correlation."
            )
    return lines


def correlation_sentences(analysis: AnalysisRecord) -> list[str]:
    """The correlation over all weights of each run that has one, next to the paper's."""
    lines = []
    for run in analysis.runs:
        overall = next((one for one in run.correlations if one.correlation is not None), None)
        if overall is None:
            continue
        published = paper.CORRELATION.get(run.method)
        paper_words = f" (the paper's: {numbers.correlation(published)})" if published is not None else ""
        lines.append(
            f"{analysis.model}, {title_of(run.method)} ({run.name}): correlation of ΔM and ΔD "
            f"{numbers.correlation(overall.correlation)}{paper_words}, over {overall.points:,} weights and "
            "checkpoints."
        )
    return lines


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
