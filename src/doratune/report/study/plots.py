"""The figures of a study: accuracies, differences, learning rates and training curves, as SVG."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from doratune.records.study import (
    METHOD_NAMES,
    StudyArm,
    StudyCell,
    StudyDifference,
    StudyMethod,
    StudyRecord,
    arm_name,
)
from doratune.report import numbers
from doratune.report.figures import DASHES, GRID, PAPER, TEXT, colour, drawing, new_figure, shortened, to_svg
from doratune.report.study import cells
from doratune.report.study.cells import Pair

if TYPE_CHECKING:
    from matplotlib.axes import Axes

SERIES: dict[StudyMethod, int] = {"lora": 1, "dora": 2, "dora-attached-norm": 3, "full": 4}
MARKERS: dict[StudyMethod, str] = {"lora": "o", "dora": "D", "dora-attached-norm": "^", "full": "s"}
CURVE_POINTS = 200  # of one line: more cannot be seen and makes the page large


def accuracy_plot(cell: StudyCell, name: str) -> str:
    """Each arm's mean with its interval, and its seeds, as an ``<svg>`` element.

    Args:
        cell: What to draw.
        name: Prefix of the ids inside, unique in the page.
    """
    with drawing(name):
        figure, axes = new_figure(0.75 + 0.52 * len(cell.arms))
        small = "; small: single seeds" if any(len(arm.runs) > 1 for arm in cell.arms) else ""
        for place, arm in enumerate(cell.arms):
            index, marker = SERIES[arm.method], MARKERS[arm.method]
            low, high = (100 * bound for bound in arm.interval)
            _whisker(axes, place, 100 * arm.mean, (low, high), colour(index), marker)
            seeds = [100 * run.result.accuracy for run in arm.runs]
            if len(seeds) > 1:
                axes.plot(
                    seeds,
                    [place + 0.2] * len(seeds),
                    linestyle="none",
                    marker=marker,
                    markersize=3.5,
                    color=colour(index),
                    alpha=0.6,
                )
            text = f"{numbers.percent(arm.mean)}  ({numbers.interval(arm.interval)})"
            _line_label(axes, place, cells.method_name(arm.method), text)
        axes.set(ylim=(len(cell.arms) - 0.5, -0.6), yticks=[], xlabel=f"accuracy in %{small}")
        _dotted(axes)
        words = "; ".join(
            f"{METHOD_NAMES[arm.method]} {numbers.percent(arm.mean)}, "
            f"interval {numbers.interval(arm.interval)}"
            for arm in cell.arms
        )
        return to_svg(figure, name, f"Accuracy on {cell.task}: {words}.")


def forest_plot(record: StudyRecord, pair: Pair, name: str) -> str:
    """The differences of one pair on every cell, and pooled, around a line at zero, as an ``<svg>``."""
    rows = [(cells.cell_label(cell, record), one) for cell, one in cells.differences(record, pair)]
    single = len(rows)
    rows += [(cells.pooled_label(one, record), how) for one, how in cells.pooled(record, pair)]
    index = SERIES[pair[1]]
    with drawing(name):
        figure, axes = new_figure(0.75 + 0.5 * len(rows))
        for place, (label, one) in enumerate(rows):
            told = one.outcome != "undecided"
            marker = "o" if place < single else "D"
            fill = colour(index) if told else PAPER
            _whisker(axes, place, one.points, one.interval, colour(index), marker, fill)
            text = f"{numbers.signed(one.points)}  ({numbers.signed_interval(one.interval)})"
            _line_label(axes, place, shortened(label, 26), text)
        axes.axvline(0, color=TEXT, linewidth=1, linestyle=(0, (2, 2)))
        better = shortened(arm_name(pair[1]), 24)
        axes.set(
            ylim=(len(rows) - 0.5, -0.6),
            yticks=[],
            xlabel=f"points; right of 0: {better} better",
        )
        _dotted(axes)
        words = "; ".join(f"{label} {_difference_words(one)}" for label, one in rows)
        return to_svg(figure, name, f"{cells.pair_name(pair)}: {words}.")


def search_plot(cell: StudyCell, name: str) -> str | None:
    """Validation accuracy over learning rate, a line per arm, the chosen ones ringed; None without tries."""
    searched = [arm for arm in cell.arms if arm.trials]
    if not searched:
        return None
    with drawing(name):
        figure, axes = new_figure(2.9)
        for arm in searched:
            index, marker = SERIES[arm.method], MARKERS[arm.method]
            rates = [trial.learning_rate for trial in arm.trials]
            shares = [100 * trial.accuracy for trial in arm.trials]
            axes.plot(rates, shares, marker=marker, markersize=5, **_line(arm))
            chosen = [trial for trial in arm.trials if trial.chosen]
            axes.plot(
                [trial.learning_rate for trial in chosen],
                [100 * trial.accuracy for trial in chosen],
                linestyle="none",
                marker="o",
                markersize=13,
                markerfacecolor="none",
                markeredgecolor=colour(index),
                markeredgewidth=1.6,
            )
        _rate_axis(axes, sorted({trial.learning_rate for arm in searched for trial in arm.trials}))
        axes.margins(0.08, 0.12)  # room for the rings
        axes.set(xlabel="learning rate; ringed: chosen", ylabel="validation accuracy in %")
        _grid_and_legend(axes)
        words = "; ".join(
            f"{METHOD_NAMES[arm.method]} chose {numbers.learning_rate(arm.learning_rate)}" for arm in searched
        )
        return to_svg(figure, name, f"Validation accuracy over learning rate on {cell.task}: {words}.")


def loss_plot(cell: StudyCell, name: str) -> str | None:
    """Training loss over steps, a line per arm: the mean of its seeds in a band of their span; or None."""
    curves = [(arm, _curve(arm)) for arm in cell.arms]
    curves = [(arm, curve) for arm, curve in curves if curve]
    if not curves:
        return None
    with drawing(name):
        figure, axes = new_figure(2.9)
        for arm, curve in curves:
            steps = [point[0] for point in curve]
            alone = "o" if len(curve) == 1 else None
            axes.plot(steps, [point[1] for point in curve], marker=alone, **_line(arm))
            if len(arm.runs) > 1:
                axes.fill_between(
                    steps,
                    [point[2] for point in curve],
                    [point[3] for point in curve],
                    color=colour(SERIES[arm.method]),
                    alpha=0.15,
                    linewidth=0,
                )
        axes.set(xlabel="step", ylabel="training loss")
        _grid_and_legend(axes)
        ends = "; ".join(
            f"{METHOD_NAMES[arm.method]} from {curve[0][1]:.3f} to {curve[-1][1]:.3f}"
            for arm, curve in curves
        )
        return to_svg(figure, name, f"Training loss over steps on {cell.task}: {ends}.")


def _curve(arm: StudyArm) -> list[tuple[int, float, float, float]]:
    """(step, mean, least, most) over the seeds, of running means, where all seeds have a finite loss."""
    import numpy as np

    by_seed = [{step: loss for step, loss in run.curve if loss is not None} for run in arm.runs]
    steps = sorted(set.intersection(*(set(one) for one in by_seed)))
    if not steps:
        return []
    losses = np.array([[one[step] for step in steps] for one in by_seed])
    width = max(1, len(steps) // 20)
    sums = np.cumsum(np.pad(losses, ((0, 0), (1, 0))), axis=1)
    first = np.maximum(np.arange(len(steps)) - width + 1, 0)
    last = np.arange(len(steps)) + 1
    means = (sums[:, last] - sums[:, first]) / (last - first)
    kept = np.unique(np.linspace(0, len(steps) - 1, CURVE_POINTS).round().astype(int))
    rows = zip(kept, means.mean(0)[kept], means.min(0)[kept], means.max(0)[kept], strict=True)
    return [(steps[place], float(mean), float(least), float(most)) for place, mean, least, most in rows]


def _whisker(
    axes: Axes,
    place: float,
    value: float,
    bounds: tuple[float, float],
    line: str,
    marker: str,
    fill: str | None = None,
) -> None:
    axes.plot(bounds, [place, place], color=line, linewidth=2, solid_capstyle="butt")
    for bound in bounds:
        axes.plot([bound, bound], [place - 0.08, place + 0.08], color=line, linewidth=2)
    axes.plot(
        [value], [place], marker=marker, markersize=8, color=line, markerfacecolor=fill or line, zorder=3
    )


def _line_label(axes: Axes, place: float, name: str, text: str) -> None:
    """The name above the left end of a row and its figures above the right end."""
    across = axes.get_yaxis_transform()
    axes.text(0, place - 0.2, name, va="bottom", weight="bold", transform=across)
    axes.text(1, place - 0.2, text, va="bottom", ha="right", transform=across)


def _dotted(axes: Axes) -> None:
    axes.spines["left"].set_visible(False)
    axes.margins(x=0.06)
    axes.grid(visible=True, axis="x", color=GRID, linewidth=0.6, alpha=0.6)
    axes.set_axisbelow(True)


def _line(arm: StudyArm) -> dict[str, Any]:
    index = SERIES[arm.method]
    return {
        "color": colour(index),
        "linewidth": 1.8,
        "linestyle": DASHES[index],
        "label": cells.method_name(arm.method),
    }


def _rate_axis(axes: Axes, rates: Sequence[float]) -> None:
    from matplotlib.ticker import NullFormatter, NullLocator

    axes.set_xscale("log")
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.set_xticks(rates, [numbers.learning_rate(rate) for rate in rates])
    if len(rates) > 6:
        axes.tick_params(axis="x", rotation=60)


def _grid_and_legend(axes: Axes) -> None:
    """A legend above the axes, where it hides nothing."""
    axes.grid(visible=True, axis="y", color=GRID, linewidth=0.6, alpha=0.6)
    axes.legend(frameon=False, loc="lower left", bbox_to_anchor=(-0.1, 1.0), ncols=2, handlelength=2.6)


def _difference_words(one: StudyDifference) -> str:
    return f"{numbers.points(one.points)}, interval {numbers.signed_interval(one.interval)}"
