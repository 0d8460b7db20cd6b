"""Accuracy against a setting that a study crosses, such as the rank, as SVG."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from doratune.records.study import StudyArm
from doratune.report import numbers
from doratune.report.figures import Sheet, colour, drawing, marker, to_svg
from doratune.report.plots.lines import apart, draw_panels, name_axes, scale_of, single
from doratune.report.view import NamedCell, View, arm_title, axis_words

if TYPE_CHECKING:
    from matplotlib.axes import Axes

AXES = {
    "rank": "rank",
    "batch_size": "batch size",
    "epochs": "epochs",
    "training_rows": "training rows",
}  #: in the order of ``axis_words``
NOTE = (
    "A mark is a mean over the seeds with its 95 % interval, a small one a single seed. Marks at one value "
    "stand next to each other."
)
BESIDE = 0.02  # between arms at one value, as a share of the axis


@dataclass(frozen=True)
class Crossed:
    """Cells that differ in one setting only.

    Attributes:
        axis: The setting, as a field of a cell.
        label: What the cells have in common, and the setting.
        arms: Those with several values, by name, and each by its value, ascending.
    """

    axis: str
    label: str
    arms: dict[str, dict[float, StudyArm]]


def crossed(view: View) -> list[Crossed]:
    """The settings with several values, for each group of cells that differ in nothing else."""
    found = []
    for place, axis in enumerate(AXES):
        groups: dict[tuple[object, ...], dict[float, NamedCell]] = {}
        for named in view.cells:
            cell = named.cell
            value = getattr(cell, axis)
            if value is None:
                continue
            others = [getattr(cell, other) for other in AXES if other != axis]
            train = cell.train.asked if cell.train else None
            same = (cell.model, cell.task, cell.test.asked, cell.format, cell.protocol, train, *others)
            groups.setdefault(same, {})[value] = named
        for cells in groups.values():
            if len(cells) > 1:
                first = next(iter(cells.values()))
                common = first.label.replace(f", {axis_words(first.cell)[place]}", "")
                found.append(Crossed(axis, f"{common}: {AXES[axis]}", _arms(cells)))
    return [one for one in found if one.arms]


def _arms(cells: dict[float, NamedCell]) -> dict[str, dict[float, StudyArm]]:
    by_arm: dict[str, dict[float, StudyArm]] = {}
    for value, named in sorted(cells.items()):
        for arm in named.cell.arms:
            by_arm.setdefault(arm.name, {})[value] = arm
    return {name: found for name, found in by_arm.items() if len(found) > 1}


def crossed_plot(one: Crossed, view: View, sheet: Sheet) -> str:
    """Each arm's accuracy with its interval and its seeds at every value, as an ``<svg>`` element."""
    arms = [next(iter(found.values())) for found in one.arms.values()]
    values = sorted({value for found in one.arms.values() for value in found})
    step = 1.0 if apart(arms) else (values[-1] / values[0]) ** BESIDE

    def draw(axes: Axes, arm: StudyArm, look: dict[str, Any], behind: bool) -> None:
        found = one.arms[arm.name]
        beside = step ** (arms.index(arm) - (len(arms) - 1) / 2)
        across = [value * beside for value in found]
        means = [100 * at.mean for at in found.values()]
        if behind:
            axes.plot(across, means, **look)
            return
        index = view.series[arm.name]
        axes.plot(across, means, marker=marker(index), markersize=6, **look)
        low, high = ([100 * at.interval[end] for at in found.values()] for end in (0, 1))
        axes.vlines(across, low, high, color=colour(index), linewidth=1.4)
        seeds = [
            (place, 100 * run.result.accuracy)
            for place, at in zip(across, found.values(), strict=True)
            for run in at.runs
            if len(at.runs) > 1
        ]
        if seeds:
            axes.plot(*zip(*seeds, strict=True), **single(index))

    with drawing(sheet):
        figure, panels = draw_panels(arms, view, sheet, draw)
        scale_of(panels, values, [f"{value:,g}" for value in values])
        small = "; small: single seeds" if any(len(arm.runs) > 1 for arm in arms) else ""
        name_axes(figure, panels, f"{AXES[one.axis]}{small}", "accuracy in %")
        words = "; ".join(f"{arm_title(name)} {_words(found)}" for name, found in one.arms.items())
        return to_svg(figure, sheet, f"Accuracy against {AXES[one.axis]} on {one.label}: {words}.")


def _words(found: dict[float, StudyArm]) -> str:
    return ", ".join(
        f"{value:,g}: {numbers.percent(arm.mean)}, interval {numbers.interval(arm.interval)}"
        for value, arm in found.items()
    )
