"""The figures of a study: accuracies, differences, learning rates and training curves, as SVG."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import mean
from typing import TYPE_CHECKING, Any

from doratune.records.study import IN_WORDS, NO_VERDICT, StudyArm, arm_name
from doratune.report import numbers
from doratune.report.figures import (
    GRID,
    PAPER,
    TEXT,
    WIDE,
    Sheet,
    colour,
    dash,
    drawing,
    marker,
    new_figure,
    new_panels,
    shortened,
    to_svg,
)
from doratune.report.view import NamedCell, Pair, Training, View, arm_title, rates_of

if TYPE_CHECKING:
    from matplotlib.axes import Axes

NOTHING = "no verdict: neither is shown to learn"  #: of a cell that tells nothing
CURVE_POINTS = 200  # of one line: more cannot be seen and makes the page large

BROAD: dict[str, Any] = {"linewidth": 4.5, "alpha": 0.5, "zorder": 1.5}  # of a line that others lie on

Curve = list[tuple[int, float, float, float]]  #: (step, mean, least, most) over the seeds


def bar_plot(named: NamedCell, view: View, sheet: Sheet) -> str:
    """Bars of accuracy from 0 to 100 % with intervals and a line at chance, as an ``<svg>`` element.

    Args:
        named: The cell to draw.
        view: Where the colours come from.
        sheet: What it is drawn on.
    """
    cell = named.cell
    base = [("Base", cell.base.accuracy, cell.base.interval, 0)] if cell.base else []
    arms = [(arm_title(arm.name), arm.mean, arm.interval, view.series[arm.name]) for arm in cell.arms]
    bars = [*base, *arms]
    with drawing(sheet):
        figure, axes = new_figure(sheet, 0.62 + 0.52 * len(bars))
        for place, (title, accuracy, interval, index) in enumerate(bars):
            value, (low, high) = 100 * accuracy, (100 * bound for bound in interval)
            axes.barh(place, value, height=0.36, color=colour(index))
            errors = [[max(0.0, value - low)], [max(0.0, high - value)]]
            axes.errorbar(value, place, xerr=errors, color=TEXT, capsize=3, linewidth=1.2)
            line_label(axes, place - 0.1, shortened(title), _accuracy(accuracy, interval))
        axes.axvline(100 * cell.chance, color=TEXT, linewidth=1, linestyle=(0, (2, 2)))
        axes.set(xlim=(0, 100), ylim=(len(bars) - 0.65, -0.85), yticks=[])
        axes.set_xlabel("accuracy in %; dotted: chance")
        axes.spines["left"].set_visible(False)
        words = "; ".join(f"{title} {_accuracy_words(share, interval)}" for title, share, interval, _ in bars)
        chance = numbers.percent(cell.chance)
        return to_svg(figure, sheet, f"Accuracy on {named.label}: {words}; chance {chance}.")


def dot_plot(named: NamedCell, view: View, sheet: Sheet) -> str:
    """Each arm's mean with its interval, and its seeds, as an ``<svg>`` element."""
    arms = named.cell.arms
    with drawing(sheet):
        figure, axes = new_figure(sheet, 0.75 + 0.52 * len(arms))
        small = "; small: single seeds" if any(len(arm.runs) > 1 for arm in arms) else ""
        for place, arm in enumerate(arms):
            index = view.series[arm.name]
            low, high = (100 * bound for bound in arm.interval)
            whisker(axes, place, 100 * arm.mean, (low, high), index, marker(index))
            seeds = [100 * run.result.accuracy for run in arm.runs]
            if len(seeds) > 1:
                heights = [place + 0.2] * len(seeds)
                look = {"linestyle": "none", "marker": marker(index), "markersize": 3.5, "alpha": 0.6}
                axes.plot(seeds, heights, color=colour(index), **look)
            line_label(axes, place, shortened(arm_title(arm.name), 24), _accuracy(arm.mean, arm.interval))
        axes.set(ylim=(len(arms) - 0.5, -0.6), yticks=[], xlabel=f"accuracy in %{small}")
        dotted(axes)
        words = "; ".join(f"{arm_title(arm.name)} {_accuracy_words(arm.mean, arm.interval)}" for arm in arms)
        return to_svg(figure, sheet, f"Accuracy on {named.label}: {words}.")


def forest_plot(pair: Pair, view: View, sheet: Sheet, title: str = "") -> str:
    """The differences of one pair on every cell, and pooled, around a line at zero, as an ``<svg>``.

    Cells that tell nothing are grey like the base model. The axis covers only the others, and an arrow marks
    a cell that leaves it.

    Args:
        pair: What to draw.
        view: Where the colours come from.
        sheet: What it is drawn on.
        title: The title, if the page does not show it.
    """
    wide = sheet.width >= WIDE
    with drawing(sheet):
        figure, axes = new_figure(sheet, 0.75 + 0.5 * len(pair.all) + (0.4 if title else 0))
        low, high = _range(pair)
        for place, one in enumerate(pair.all):
            found = one.difference
            index = 0 if one.tells_nothing else view.series[pair.to_arm]
            fill = PAPER if found.outcome in ("undecided", NO_VERDICT) else colour(index)
            shown = max(low, found.interval[0]), min(high, found.interval[1])
            whisker(axes, place, found.points, shown, index, "o" if one.cell else "D", fill)
            for end, arrow in ((low, "<"), (high, ">")):
                if not low <= found.interval[end == high] <= high:
                    axes.plot([end], [place], color=colour(index), marker=arrow, markersize=7, clip_on=False)
            text = f"{numbers.signed(found.points)}  ({numbers.signed_interval(found.interval)})"
            remark = NOTHING if wide and one.tells_nothing else ""
            line_label(axes, place, shortened(one.label, 40 if wide else 26), text, remark)
        axes.axvline(0, color=TEXT, linewidth=1, linestyle=(0, (2, 2)), zorder=0.5)
        axes.set(xlim=(low, high), ylim=(len(pair.all) - 0.5, -0.6), yticks=[])
        axes.set_xlabel(f"points; right of 0: {shortened(arm_name(pair.to_arm), 24)} {IN_WORDS['better']}")
        dotted(axes)
        if title:
            axes.set_title(title, loc="left", fontsize=9.5)
        words = "; ".join(
            f"{one.label} {numbers.points(one.difference.points)}, "
            f"interval {numbers.signed_interval(one.difference.interval)}"
            f"{f', {NOTHING}' if one.tells_nothing else ''}"
            for one in pair.all
        )
        return to_svg(figure, sheet, f"{pair.name}: {words}.")


def _range(pair: Pair) -> tuple[float, float]:
    """The range of the axis: the differences that tell something, and zero."""
    telling = [one for one in pair.all if not one.tells_nothing]
    bounds = [bound for one in telling or pair.all for bound in one.difference.interval]
    low, high = min(0.0, *bounds), max(0.0, *bounds)
    room = 0.08 * (high - low) or 1.0
    return low - room, high + room


def search_plot(training: Training, view: View, sheet: Sheet) -> str | None:
    """Validation accuracy over learning rate, a line per arm, chosen rates ringed; None without a search."""
    searched = [arm for arm in training.arms if arm.trials]
    if not searched:
        return None
    with drawing(sheet):
        figure, axes = new_figure(sheet, 2.9)
        several = False
        for arm in searched:
            index = view.series[arm.name]
            points = [
                (trial.learning_rate, 100 * trial.accuracy, trial.chosen)
                for trial in arm.trials
                if trial.accuracy is not None  # a rate that diverged is told in words
            ]
            rates = sorted({rate for rate, _, _ in points})
            shares = [mean(share for one, share, _ in points if one == rate) for rate in rates]
            look = _line(arm, index)
            if arm is searched[0] and len(searched) > 1:
                look |= BROAD
            axes.plot(rates, shares, marker=marker(index), markersize=5, **look)
            if len(points) > len(rates):
                several = True
                single = {"linestyle": "none", "marker": marker(index), "markersize": 3.5, "alpha": 0.6}
                every = [(rate, share) for rate, share, _ in points]
                axes.plot(*zip(*every, strict=True), color=colour(index), **single)
            for rate, share, chosen in points:
                if chosen:
                    ring = {
                        "markerfacecolor": "none",
                        "markeredgecolor": colour(index),
                        "markeredgewidth": 1.6,
                    }
                    axes.plot([rate], [share], linestyle="none", marker="o", markersize=13, **ring)
        _rate_axis(axes, sorted({trial.learning_rate for arm in searched for trial in arm.trials}))
        axes.margins(0.08, 0.12)  # room for the rings
        line = "line: mean over seeds; " if several else ""
        axes.set(xlabel=f"learning rate; {line}ringed: chosen", ylabel="validation accuracy in %")
        _grid_and_legend(axes)
        words = "; ".join(
            f"{arm_title(arm.name)} chose {' and '.join(map(numbers.learning_rate, rates_of(arm)))}"
            for arm in searched
        )
        return to_svg(figure, sheet, f"Validation accuracy over learning rate{_on(training)}: {words}.")


def loss_plot(training: Training, view: View, sheet: Sheet) -> str | None:
    """Training loss over steps, a line per arm, as an ``<svg>`` element; None without a finite loss.

    The line is a running mean. Behind it is the loss as logged, or the span of several seeds. LoRA's line, or
    else the first, is broad and pale, so that it stays visible under the others. A panel below shows how far
    the other arms are from it.
    """
    curves = [(arm, curve) for arm in training.arms if (curve := _curve(arm))]
    if not curves:
        return None
    reference, apart = _apart(training, curves)
    with drawing(sheet):
        if apart:
            figure, (axes, below) = new_panels(sheet, 3.9, [3, 1.3])
            _draw_apart(below, reference, apart, view)
        else:
            figure, axes = new_figure(sheet, 2.9)
            axes.set_xlabel("step")
        for arm, curve in curves:
            index = view.series[arm.name]
            steps, means, low, high = zip(*curve, strict=True)
            look = _line(arm, index)
            if apart and arm is reference:
                look |= BROAD
            axes.plot(steps, means, marker="o" if len(curve) == 1 else None, **look)
            if len(arm.runs) > 1:
                axes.fill_between(steps, low, high, color=colour(index), alpha=0.15, linewidth=0)
            elif window(len(curve)) > 1:
                logged = [(step, loss) for step, loss in arm.runs[0].curve if loss is not None]
                axes.plot(
                    *zip(*logged, strict=True), color=colour(index), linewidth=0.8, alpha=0.35, zorder=1
                )
        axes.locator_params(axis="x", integer=True)
        axes.set_ylabel("training loss")
        _grid_and_legend(axes)
        ends = "; ".join(
            f"{arm_title(arm.name)} from {curve[0][1]:.3f} to {curve[-1][1]:.3f}" for arm, curve in curves
        )
        most = "".join(
            f" {arm_title(arm.name)} is at most {max(abs(loss) for _, loss in line):.3f} from "
            f"{arm_name(reference.name)}."
            for arm, line in apart
        )
        return to_svg(figure, sheet, f"Training loss over steps{_on(training)}: {ends}.{most}")


def _apart(
    training: Training, curves: Sequence[tuple[StudyArm, Curve]]
) -> tuple[StudyArm, list[tuple[StudyArm, list[tuple[int, float]]]]]:
    """LoRA, or the first arm, and each other arm's loss minus its loss, at the steps both have."""
    lora = training.of_method("lora")
    reference, curve = next((one for one in curves if one[0] is lora), curves[0])
    means = {step: mean for step, mean, _, _ in curve}
    lines = [
        (arm, [(step, mean - means[step]) for step, mean, _, _ in other if step in means])
        for arm, other in curves
        if arm is not reference
    ]
    return reference, [(arm, line) for arm, line in lines if len(line) > 1]


def _draw_apart(
    axes: Axes,
    reference: StudyArm,
    apart: Sequence[tuple[StudyArm, list[tuple[int, float]]]],
    view: View,
) -> None:
    axes.axhline(0, color=colour(view.series[reference.name]), **BROAD)
    for arm, line in apart:
        axes.plot(*zip(*line, strict=True), **_line(arm, view.series[arm.name]))
    axes.locator_params(axis="y", nbins=3)
    axes.set(xlabel="step", ylabel=f"minus {shortened(arm_name(reference.name), 10)}")
    axes.grid(visible=True, axis="y", color=GRID, linewidth=0.6, alpha=0.6)


def window(points: int) -> int:
    """The number of points in a curve's running mean."""
    return max(1, points // 20)


def _curve(arm: StudyArm) -> Curve:
    """(step, mean, least, most) over the seeds, of running means, where all seeds have a finite loss."""
    import numpy as np

    by_seed = [{step: loss for step, loss in run.curve if loss is not None} for run in arm.runs]
    steps = sorted(set.intersection(*(set(one) for one in by_seed)))
    if not steps:
        return []
    losses = np.array([[one[step] for step in steps] for one in by_seed])
    sums = np.cumsum(np.pad(losses, ((0, 0), (1, 0))), axis=1)
    first = np.maximum(np.arange(len(steps)) - window(len(steps)) + 1, 0)
    last = np.arange(len(steps)) + 1
    means = (sums[:, last] - sums[:, first]) / (last - first)
    kept = np.unique(np.linspace(0, len(steps) - 1, CURVE_POINTS).round().astype(int))
    rows = zip(kept, means.mean(0)[kept], means.min(0)[kept], means.max(0)[kept], strict=True)
    return [(steps[place], float(mean), float(least), float(most)) for place, mean, least, most in rows]


def _on(training: Training) -> str:
    return f" on {training.label}" if training.label else ""


def _accuracy(share: float, interval: tuple[float, float]) -> str:
    return f"{numbers.percent(share)}  ({numbers.interval(interval)})"


def _accuracy_words(share: float, interval: tuple[float, float]) -> str:
    return f"{numbers.percent(share)}, interval {numbers.interval(interval)}"


def whisker(
    axes: Axes,
    place: float,
    value: float,
    bounds: tuple[float, float],
    index: int,
    shape: str,
    fill: str | None = None,
) -> None:
    """Draw a row's interval and its value."""
    line = colour(index)
    axes.plot(bounds, [place, place], color=line, linewidth=2, solid_capstyle="butt")
    for bound in bounds:
        axes.plot([bound, bound], [place - 0.08, place + 0.08], color=line, linewidth=2)
    look = {"marker": shape, "markersize": 8, "markerfacecolor": fill or line}
    axes.plot([value], [place], color=line, zorder=3, **look)


def line_label(axes: Axes, place: float, name: str, text: str, remark: str = "") -> None:
    """Write a row's name, perhaps with a remark, above its left end and its figures above its right end."""
    across = axes.get_yaxis_transform()
    look = {"va": "bottom", "bbox": {"facecolor": PAPER, "edgecolor": "none", "pad": 0.6}}
    named = axes.text(0, place - 0.2, name, weight="bold", transform=across, **look)
    if remark:
        axes.annotate(remark, (1, 0), xycoords=named, xytext=(5, 0), textcoords="offset points", **look)
    axes.text(1, place - 0.2, text, ha="right", transform=across, **look)


def dotted(axes: Axes) -> None:
    """Finish the axes of rows below each other: a quiet grid, and no axis on the left."""
    axes.spines["left"].set_visible(False)
    axes.margins(x=0.06)
    axes.grid(visible=True, axis="x", color=GRID, linewidth=0.6, alpha=0.6)
    axes.set_axisbelow(True)


def _line(arm: StudyArm, index: int) -> dict[str, Any]:
    look = {"color": colour(index), "linewidth": 1.8, "linestyle": dash(index)}
    return {**look, "label": shortened(arm_title(arm.name), 24)}


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
