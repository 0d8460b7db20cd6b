"""Accuracy against what the training cost, with the Pareto front, as SVG."""

from __future__ import annotations

import math
from itertools import pairwise

from doratune.report import numbers
from doratune.report.figures import TEXT, Sheet, drawing, to_svg
from doratune.report.fronts import Cost, on_front
from doratune.report.plots.scatter import Mark, draw_marks, new_scatter
from doratune.report.view import NamedCell, View, arm_title

LOGARITHMIC = 8  # ratio of the largest and smallest cost from which the axis is logarithmic


def cost_plot(named: NamedCell, cost: Cost, view: View, sheet: Sheet) -> str | None:
    """Accuracy with its interval against one cost, as an ``<svg>`` element; None without two arms."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

    arms = on_front(named, cost)
    if not arms:
        return None
    values = [value for _, value, _ in arms]
    middle = math.sqrt(min(values) * max(values))
    unit, size = next((one for one in reversed(cost.units) if one[1] <= middle), cost.units[0])
    marks = [
        Mark(
            arm_title(arm.name),
            view.series[arm.name],
            value / size,
            100 * arm.mean,
            y_interval=(100 * arm.interval[0], 100 * arm.interval[1]),
            filled=on,
        )
        for arm, value, on in arms
    ]
    best = [one for one in marks if one.filled]
    with drawing(sheet):
        figure, axes = new_scatter(sheet, len(marks))
        if min(values) > 0 and max(values) / min(values) > LOGARITHMIC:
            axes.set_xscale("log")
            axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,g}"))
            axes.xaxis.set_major_locator(LogLocator(subs=(1, 3)))
            axes.xaxis.set_minor_locator(NullLocator())
        axes.plot(
            [one.x for one in best],
            [one.y for one in best],
            drawstyle="steps-post",
            color=TEXT,
            linewidth=1.1,
            linestyle=(0, (4, 2)),
            zorder=1,
        )
        axes.set(xlabel=f"{cost.name} in {unit}", ylabel="accuracy in %")
        steps = [((one.x, one.y), (after.x, one.y)) for one, after in pairwise(best)]
        rises = [((after.x, one.y), (after.x, after.y)) for one, after in pairwise(best)]
        others = [one for one in marks if not one.filled]
        draw_marks(figure, axes, [*best, *others], sheet, [*steps, *rises])
        words = "; ".join(
            f"{arm_title(arm.name)} {cost.words(value)}, {numbers.percent(arm.mean)}, interval "
            f"{numbers.interval(arm.interval)}{', on the front' if on else ''}"
            for arm, value, on in arms
        )
        return to_svg(figure, sheet, f"Accuracy on {named.label} against {cost.name}: {words}.")
