"""Accuracy against learning rate, for every arm, as SVG."""

from __future__ import annotations

from statistics import mean
from typing import TYPE_CHECKING, Any

from doratune.records.study import StudyArm
from doratune.report import numbers
from doratune.report.figures import Sheet, colour, drawing, marker, to_svg
from doratune.report.plots.lines import apart, draw_panels, name_axes, on, scale_of, single
from doratune.report.view import Training, View, arm_title, rates_of

if TYPE_CHECKING:
    from matplotlib.axes import Axes


def search_plot(training: Training, view: View, sheet: Sheet) -> str | None:
    """Validation accuracy over learning rate for each arm; None without a search.

    The line is the mean over the seeds, the band spans them, the points are single seeds, and the chosen
    ones are ringed.
    """
    searched = [arm for arm in training.arms if arm.trials]
    if not searched:
        return None
    several = any(len(by_seed) > 1 for arm in searched for by_seed in _tried(arm).values())
    ring = {"linestyle": "none", "marker": "o", "markersize": 8 if apart(searched) else 12}

    def draw(axes: Axes, arm: StudyArm, look: dict[str, Any], behind: bool) -> None:
        index, tried = view.series[arm.name], _tried(arm)
        means = [mean(shares) for shares in tried.values()]
        if behind:
            axes.plot([*tried], means, **look)
            return
        seeds = any(len(shares) > 1 for shares in tried.values())
        axes.plot([*tried], means, marker=None if seeds else marker(index), markersize=5, **look)
        if seeds:
            low, high = (list(map(end, tried.values())) for end in (min, max))
            axes.fill_between([*tried], low, high, color=colour(index), alpha=0.15, linewidth=0)
            every = [(rate, share) for rate, shares in tried.items() for share in shares]
            axes.plot(*zip(*every, strict=True), **single(index))
        chosen = [
            (one.learning_rate, 100 * one.accuracy)
            for one in arm.trials
            if one.chosen and one.accuracy is not None
        ]
        if chosen:
            edge = {"markerfacecolor": "none", "markeredgecolor": colour(index), "markeredgewidth": 1.4}
            axes.plot(*zip(*chosen, strict=True), **ring, **edge)

    with drawing(sheet):
        figure, panels = draw_panels(searched, view, sheet, draw)
        rates = sorted({trial.learning_rate for arm in searched for trial in arm.trials})
        scale_of(panels, rates, [numbers.learning_rate(rate) for rate in rates])
        for axes in panels:
            axes.margins(0.08, 0.12)  # room for the rings
        line = "line: mean over seeds; " if several else ""
        name_axes(figure, panels, f"learning rate; {line}ringed: chosen", "validation accuracy in %")
        words = "; ".join(_words(arm) for arm in searched)
        return to_svg(figure, sheet, f"Validation accuracy over learning rate{on(training)}: {words}.")


def _tried(arm: StudyArm) -> dict[float, list[float]]:
    """The accuracies in % at every rate, ascending; a run that diverged is told in words."""
    tried: dict[float, list[float]] = {}
    for one in sorted(arm.trials, key=lambda one: one.learning_rate):
        if one.accuracy is not None:
            tried.setdefault(one.learning_rate, []).append(100 * one.accuracy)
    return tried


def _words(arm: StudyArm) -> str:
    told = ", ".join(
        f"{numbers.learning_rate(rate)}: {numbers.percent(mean(shares) / 100)}"
        for rate, shares in _tried(arm).items()
    )
    chosen = " and ".join(map(numbers.learning_rate, rates_of(arm)))
    return f"{arm_title(arm.name)} chose {chosen} ({told})"
