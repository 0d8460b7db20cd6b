"""The accuracies of a cell, as bars or as means with their seeds, as SVG."""

from __future__ import annotations

from doratune.report import numbers
from doratune.report.figures import TEXT, Sheet, colour, drawing, marker, new_figure, shortened, to_svg
from doratune.report.plots.rows import dotted, line_label, whisker
from doratune.report.view import NamedCell, View, arm_title


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


def _accuracy(share: float, interval: tuple[float, float]) -> str:
    return f"{numbers.percent(share)}  ({numbers.interval(interval)})"


def _accuracy_words(share: float, interval: tuple[float, float]) -> str:
    return f"{numbers.percent(share)}, interval {numbers.interval(interval)}"
