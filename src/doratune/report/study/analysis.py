"""How training moved the weights: figures and sentences of the change of magnitude and of direction."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from doratune.records.analysis import AnalysisRecord, RunAnalysis
from doratune.records.study import METHOD_NAMES
from doratune.report import decomposition, numbers
from doratune.report.figures import DASHES, GRID, SERIES, TEXT, colour, drawing, new_figure, to_svg

if TYPE_CHECKING:
    from matplotlib.axes import Axes

MARKERS = ("o", "D", "^", "s", "v", "P", "X")
NOTE = (
    "ΔM is the mean change of the norm of a weight's rows, ΔD the mean of 1 − cosine between a row and the "
    "same row of the base model (arXiv 2402.09353, equations 3 and 4). A mark is one weight at one "
    "checkpoint; the later the checkpoint, the stronger the mark. Every run has axes of its own. The paper "
    "takes a negative correlation, as full fine-tuning has it there, for a finer way of learning."
)
GAIN_NOTE = (
    "g = m / ‖V‖ is what DoRA multiplies a row with. It is 1 before the first step; the figure shows the "
    "root mean square of g − 1 over the outputs of a layer, averaged over the layers of a kind."
)


def change_plot(run: RunAnalysis, name: str) -> str | None:
    """ΔM against ΔD of every weight at every checkpoint, coloured by kind; None without any.

    Every run has axes of its own: full fine-tuning moves weights so much less that it would be one dot.
    """
    if not run.changes:
        return None
    looks = _looks(one.kind for one in run.changes)
    steps = sorted({one.step for one in run.changes})
    with drawing(name):
        figure, axes = new_figure(3.3)
        for kind, (index, marker) in looks.items():
            for place, step in enumerate(steps, start=1):
                of_step = [one for one in run.changes if (one.kind, one.step) == (kind, step)]
                axes.plot(
                    [one.direction for one in of_step],
                    [one.magnitude for one in of_step],
                    linestyle="none",
                    marker=marker,
                    markersize=4.5,
                    markeredgewidth=0,
                    color=colour(index),
                    alpha=0.25 + 0.65 * place / len(steps),
                    label=kind if step == steps[-1] else None,
                )
        axes.locator_params(nbins=4)
        axes.ticklabel_format(style="sci", scilimits=(-2, 3))
        axes.set(xlabel="ΔD, change of direction", ylabel="ΔM, change of magnitude")
        _finish(axes, len(looks))
        return to_svg(figure, name, _change_words(run))


def gain_plot(run: RunAnalysis, name: str) -> str | None:
    """How far g is from 1 over the steps, a line per kind of layer; None for a run without a magnitude."""
    if not run.gains:
        return None
    looks = _looks(one.kind for one in run.gains)
    by_kind: dict[str, dict[int, list[float]]] = defaultdict(lambda: defaultdict(list))
    for one in run.gains:
        by_kind[one.kind][one.step].append(one.deviation)
    with drawing(name):
        figure, axes = new_figure(2.9)
        for kind, (index, marker) in looks.items():
            by_step = by_kind[kind]
            steps = sorted(by_step)
            axes.plot(
                steps,
                [sum(by_step[step]) / len(by_step[step]) for step in steps],
                color=colour(index),
                linestyle=DASHES[index],
                marker=marker,
                markersize=4.5,
                linewidth=1.6,
                label=kind,
            )
        axes.set(xlabel="step", ylabel="root mean square of g − 1")
        axes.set_ylim(bottom=0)
        _finish(axes, len(looks))
        ends = "; ".join(
            f"{kind} {sum(values) / len(values):.4f}"
            for kind, by_step in by_kind.items()
            for values in [by_step[max(by_step)]]
        )
        return to_svg(
            figure, name, f"Root mean square of g − 1 at the last checkpoint of {run.name}: {ends}."
        )


def sentences(analyses: Sequence[AnalysisRecord]) -> list[str]:
    """What came out in words, one sentence per run with a correlation."""
    lines = []
    for analysis in analyses:
        for run in analysis.runs:
            overall = next((one for one in run.correlations if one.correlation is not None), None)
            if overall is None or overall.correlation is None:
                continue
            published = decomposition.PAPER.get(run.method)
            beside = f" (the paper's: {numbers.signed(published, 2)})" if published is not None else ""
            lines.append(
                f"{analysis.model}, {METHOD_NAMES[run.method]} ({run.name}): correlation of ΔM and ΔD "
                f"{numbers.signed(overall.correlation, 2)}{beside}, over {overall.points:,} weights and "
                "checkpoints."
            )
    return lines


def _looks(kinds: Iterable[str]) -> dict[str, tuple[int, str]]:
    """The colour and the marker of each kind of layer."""
    return {
        kind: (1 + place % (SERIES - 1), MARKERS[place % len(MARKERS)])
        for place, kind in enumerate(sorted(set(kinds)))
    }


def _finish(axes: Axes, entries: int) -> None:
    axes.grid(visible=True, color=GRID, linewidth=0.6, alpha=0.6)
    axes.set_axisbelow(True)
    axes.legend(
        frameon=False,
        loc="lower left",
        bbox_to_anchor=(-0.1, 1.05),  # above the axis' own power of ten
        ncols=min(3, entries),
        handlelength=1.5,
        columnspacing=1.2,
        labelcolor=TEXT,
    )


def _change_words(run: RunAnalysis) -> str:
    overall = next((one.correlation for one in run.correlations), None)
    told = "not defined" if overall is None else numbers.signed(overall, 2)
    return f"Change of magnitude against change of direction, {run.name}: correlation {told}."
