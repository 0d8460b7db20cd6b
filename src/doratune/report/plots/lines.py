"""What plots with a line per arm share: their looks, one panel for a few arms or a panel for each of many."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from doratune.records.study import StudyArm, arm_name
from doratune.report.figures import (
    GRID,
    Sheet,
    colour,
    dash,
    marker,
    new_figure,
    new_grid,
    shortened,
)
from doratune.report.view import Training, View, arm_title

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

TOGETHER = 4  # arms whose lines can be told apart in one panel

BROAD: dict[str, Any] = {"linewidth": 4.5, "alpha": 0.5, "zorder": 1.5}  # of a line that others lie on

Draw = Callable[["Axes", StudyArm, dict[str, Any], bool], None]
"""Draws an arm with the look of its line; the last says whether only the line, behind another arm's."""


def line(arm: StudyArm, view: View) -> dict[str, Any]:
    """The look of an arm's line, and its label."""
    index = view.series[arm.name]
    look = {"color": colour(index), "linewidth": 1.8, "linestyle": dash(index)}
    return {**look, "label": shortened(arm_title(arm.name), 24)}


def single(index: int) -> dict[str, Any]:
    """The look of the points of single seeds."""
    look = {"linestyle": "none", "marker": marker(index), "markersize": 3.5, "alpha": 0.6}
    return {**look, "color": colour(index)}


def reference_of(arms: Sequence[StudyArm]) -> StudyArm:
    """LoRA, or else the first arm: the one that others are seen against."""
    return next((arm for arm in arms if arm.method == "lora"), arms[0])


def apart(arms: Sequence[StudyArm]) -> bool:
    """Whether each arm has its own panel."""
    return len(arms) > TOGETHER


def note_of(arms: Sequence[StudyArm]) -> str:
    """What the panels of many arms have in common; empty for a few arms."""
    if not apart(arms):
        return ""
    return f"The broad, pale line in every panel is that of {arm_name(reference_of(arms).name)}."


def draw_panels(arms: Sequence[StudyArm], view: View, sheet: Sheet, draw: Draw) -> tuple[Figure, list[Axes]]:
    """Draw the arms in one panel with a legend, or many arms in a panel each.

    A panel of one of many arms has its name as title and the reference behind it, broad and pale.

    Args:
        arms: What to draw.
        view: Where the looks come from.
        sheet: What it is drawn on.
        draw: Draws one arm.

    Returns:
        The figure and its panels.
    """
    if not apart(arms):
        figure, axes = new_figure(sheet, 2.9)
        draw_together(axes, arms, view, draw)
        return figure, [axes]
    reference = reference_of(arms)
    figure, panels = new_grid(sheet, len(arms), 1.45)
    for axes, arm in zip(panels, arms, strict=True):
        if arm is not reference:
            draw(axes, reference, line(reference, view) | BROAD, True)
        draw(axes, arm, line(arm, view), False)
        axes.set_title(shortened(arm_title(arm.name), 17), loc="left", fontsize=9.5, weight="bold")
        axes.grid(visible=True, axis="y", color=GRID, linewidth=0.6, alpha=0.6)
    return figure, panels


def draw_together(axes: Axes, arms: Sequence[StudyArm], view: View, draw: Draw) -> None:
    """Draw a few arms into one panel: the reference's line broad and pale, so that it stays visible."""
    reference = reference_of(arms)
    for arm in arms:
        broad = arm is reference and len(arms) > 1
        draw(axes, arm, line(arm, view) | (BROAD if broad else {}), False)
    axes.grid(visible=True, axis="y", color=GRID, linewidth=0.6, alpha=0.6)
    axes.legend(frameon=False, loc="lower left", bbox_to_anchor=(-0.1, 1.0), ncols=2, handlelength=2.6)


def name_axes(figure: Figure, panels: Sequence[Axes], across: str, up: str) -> None:
    """Say what the axes show, once for all panels."""
    if len(panels) == 1:
        panels[0].set(xlabel=across, ylabel=up)
        return
    figure.supxlabel(across, fontsize=9.5)
    figure.supylabel(up, fontsize=9.5)


def scale_of(panels: Sequence[Axes], ticks: Sequence[float], words: Sequence[str]) -> None:
    """A logarithmic axis with a tick at every value that was tried, named where there is room."""
    from matplotlib.ticker import NullFormatter, NullLocator

    named = _spaced(ticks, words, 6 if len(panels) > 1 else 14)
    for axes in panels:
        axes.set_xscale("log")
        axes.xaxis.set_minor_locator(NullLocator())
        axes.xaxis.set_minor_formatter(NullFormatter())
        axes.set_xticks(ticks, named)
        if max(map(len, named)) * (len(named) - named.count("")) > (14 if len(panels) > 1 else 30):
            axes.tick_params(axis="x", rotation=60)


def _spaced(ticks: Sequence[float], words: Sequence[str], most: int) -> list[str]:
    """The words of ascending ticks, empty for those too near the one named before: about ``most`` stay."""
    least = math.log(ticks[-1] / ticks[0]) / most
    named: list[str] = []
    before = None
    for tick, word in zip(ticks, words, strict=True):
        far = before is None or math.log(tick / before) >= least
        named.append(word if far else "")
        before = tick if far else before
    return named


def on(training: Training) -> str:
    """Where the training's results are, for a sentence."""
    return f" on {training.label}" if training.label else ""
