"""Change of magnitude over change of direction, as the paper's figure 2 shows them, as SVG.

A point is one weight at one checkpoint; the later the checkpoint, the stronger the colour. ``whole_plot`` is
a file with a panel for each method and kind of layer; a dashed line is the least squares fit of a run.
``change_plot`` and ``gain_plot`` are figures of one run, for the page of a study.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from doratune.methods.find import title_of
from doratune.records.analysis import AnalysisRecord, KindCorrelation, RunAnalysis, WeightChange
from doratune.records.study import StudyMethod
from doratune.report import numbers
from doratune.report.decomposition import kinds
from doratune.report.figures import (
    GRID,
    TEXT,
    Sheet,
    as_file,
    colour,
    dash,
    drawing,
    marker,
    new_figure,
    to_svg,
)
from doratune.report.view import series_of

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

PANEL_HEIGHT = 2.0  # inches
FAINTEST = 0.25  # opacity of the first checkpoint
MOST_NAMED = 3  # correlations that fit into a panel one by one


def whole_plot(analysis: AnalysisRecord) -> str:
    """All kinds of layers as rows and the methods as columns, as a complete SVG file."""
    from matplotlib.figure import Figure

    methods, shown = _by_method(analysis), kinds(analysis)
    series = series_of(methods)
    sheet = Sheet("analysis")
    with drawing(sheet):
        size = (0.6 + 2.4 * len(methods), 0.3 + PANEL_HEIGHT * len(shown))
        figure = Figure(figsize=size, layout="constrained")
        panels = figure.subplots(len(shown), len(methods), squeeze=False)
        for row, kind in zip(panels, shown, strict=True):
            for axes, (method, runs) in zip(row, methods.items(), strict=True):
                _draw(axes, runs, kind, series[method], f"{title_of(method)}, {kind}")
        _label(figure)
        return as_file(to_svg(figure, sheet, _words(analysis, shown)))


def _by_method(analysis: AnalysisRecord) -> dict[StudyMethod, list[RunAnalysis]]:
    methods: dict[StudyMethod, list[RunAnalysis]] = {}
    for run in analysis.runs:
        methods.setdefault(run.method, []).append(run)
    return methods


def _draw(axes: Axes, runs: Sequence[RunAnalysis], kind: str, index: int, title: str) -> None:
    for run in runs:
        shade = colour(index)
        chosen = [change for change in run.changes if kind in ("all", change.kind)]
        for place, step in enumerate(run.steps):
            points = [(one.direction, one.magnitude) for one in chosen if one.step == step]
            if not points:  # other runs have layers of this kind
                continue
            strength = FAINTEST + (1 - FAINTEST) * (place + 1) / len(run.steps)
            axes.plot(*zip(*points, strict=True), "o", color=shade, markersize=2.6, alpha=strength, mew=0)
        _draw_line(axes, chosen, _correlation(run, kind))
    axes.set_title(title, fontsize=9.5, y=1.0, pad=12)  # above the axis' own power of ten
    axes.text(0.04, 0.96, _correlation_words(runs, kind), transform=axes.transAxes, va="top", fontsize=8.5)
    axes.margins(y=0.2)
    axes.locator_params(nbins=3)
    axes.ticklabel_format(style="sci", scilimits=(-2, 3))
    axes.tick_params(labelsize=8)
    axes.xaxis.get_offset_text().set_fontsize(8)
    axes.yaxis.get_offset_text().set_fontsize(8)
    axes.grid(visible=True, color=GRID, linewidth=0.6, alpha=0.4)


def _draw_line(axes: Axes, chosen: Sequence[WeightChange], found: KindCorrelation | None) -> None:
    """The least squares line, which goes through the mean of the points."""
    if found is None or found.slope is None:
        return
    directions = [change.direction for change in chosen]
    x = sum(directions) / len(chosen)
    y = sum(change.magnitude for change in chosen) / len(chosen)
    ends = [min(directions), max(directions)]
    axes.plot(ends, [y + found.slope * (end - x) for end in ends], color=TEXT, linewidth=1, dashes=(3, 2))


def _correlation(run: RunAnalysis, kind: str) -> KindCorrelation | None:
    return next((one for one in run.correlations if one.kind == kind), None)


def _correlation_words(runs: Sequence[RunAnalysis], kind: str) -> str:
    """Such as "r = +0.83": each run's correlation, or the smallest and largest of many runs."""
    found = [one.correlation for run in runs if (one := _correlation(run, kind))]
    values = [value for value in found if value is not None]
    if not values:
        return f"r = {numbers.correlation(None)}"
    if len(values) > MOST_NAMED:
        return f"r = {numbers.correlation(min(values))} to {numbers.correlation(max(values))}"
    return f"r = {', '.join(numbers.correlation(value) for value in values)}"


def _label(figure: Figure) -> None:
    figure.supxlabel("ΔD, direction", fontsize=9.5)
    figure.supylabel("ΔM, magnitude", fontsize=9.5)


def _words(analysis: AnalysisRecord, shown: Sequence[str]) -> str:
    """The text alternative of the plot."""
    facts = [
        f"{title_of(method)}, {kind}: {_correlation_words(runs, kind)}"
        for kind in shown
        for method, runs in _by_method(analysis).items()
    ]
    return f"Change of magnitude over change of direction. {'; '.join(facts)}."


def change_plot(run: RunAnalysis, sheet: Sheet) -> str | None:
    """ΔM against ΔD of every weight at every checkpoint, coloured by kind; None without any.

    Every run has its own axes, because full fine-tuning moves weights so little that it would be one dot.
    """
    if not run.changes:
        return None
    looks = _looks(one.kind for one in run.changes)
    steps = sorted({one.step for one in run.changes})
    with drawing(sheet):
        figure, axes = new_figure(sheet, 3.3)
        for kind, index in looks.items():
            for place, step in enumerate(steps, start=1):
                of_step = [one for one in run.changes if (one.kind, one.step) == (kind, step)]
                axes.plot(
                    [one.direction for one in of_step],
                    [one.magnitude for one in of_step],
                    linestyle="none",
                    marker=marker(index),
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
        return to_svg(figure, sheet, _change_words(run))


def gain_plot(run: RunAnalysis, sheet: Sheet) -> str | None:
    """How far g is from 1 at each step, with a line per kind of layer; None for a run without a magnitude."""
    if not run.gains:
        return None
    looks = _looks(one.kind for one in run.gains)
    by_kind: dict[str, dict[int, list[float]]] = defaultdict(lambda: defaultdict(list))
    for one in run.gains:
        by_kind[one.kind][one.step].append(one.deviation)
    with drawing(sheet):
        figure, axes = new_figure(sheet, 2.9)
        for kind, index in looks.items():
            by_step = by_kind[kind]
            steps = sorted(by_step)
            axes.plot(
                steps,
                [sum(by_step[step]) / len(by_step[step]) for step in steps],
                color=colour(index),
                linestyle=dash(index),
                marker=marker(index),
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
            figure, sheet, f"Root mean square of g − 1 at the last checkpoint of {run.name}: {ends}."
        )


def _looks(kinds: Iterable[str]) -> dict[str, int]:
    """The colour and marker of each kind of layer, as an index."""
    return {kind: 1 + place for place, kind in enumerate(sorted(set(kinds)))}


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
    told = "not defined" if overall is None else numbers.correlation(overall)
    return f"Change of magnitude against change of direction, {run.name}: correlation {told}."
