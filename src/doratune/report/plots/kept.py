"""What methods keep of what they were not trained on against their accuracy, as SVG."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import mean

from doratune.records.study import Forgetting, KeptArm, KeptMeasure, StudyArm
from doratune.report import measured, numbers
from doratune.report.figures import TEXT, Sheet, drawing, to_svg
from doratune.report.plots.crossed import AXES
from doratune.report.plots.scatter import Mark, draw_marks, new_scatter
from doratune.report.view import NamedCell, View, arm_title

MEASURES: tuple[KeptMeasure, ...] = ("accuracy", "nll_per_token")  # the likelihood of a task is in the table
NOTE = (
    "Further right is more accurate on what was trained, further up keeps more of what was not. A dotted "
    "line is the model before training."
)


@dataclass(frozen=True)
class Kept:
    """What the arms of a training keep of one thing, and their results on what they were trained on.

    Attributes:
        label: Of what, and what distinguishes its training from the others.
        entry: The record.
        cells: The cells of that training.
    """

    label: str
    entry: Forgetting
    cells: list[NamedCell]

    def arms(self) -> list[tuple[KeptArm, list[StudyArm]]]:
        """The arms that have both, each with its results in the cells."""
        found = [
            (one, [arm for cell in self.cells if (arm := cell.arm(one.name))]) for one in self.entry.arms
        ]
        return [(one, results) for one, results in found if results and len(results) == len(self.cells)]


def kept(view: View) -> list[Kept]:
    """The entries with at least two arms whose training is that of cells that tell something."""
    entries = view.record.forgetting
    labels = measured.forgetting_labels(entries)
    found = [
        Kept(label, entry, _cells(entry, view.cells))
        for entry, label in zip(entries, labels, strict=True)
        if entry.measure in MEASURES
    ]
    return [one for one in found if len(one.arms()) > 1]


def _cells(entry: Forgetting, cells: Sequence[NamedCell]) -> list[NamedCell]:
    """The cells of the entry's training; none if several trainings might be meant."""
    same = [
        one
        for one in cells
        if one.cell.model == entry.model
        and all(getattr(one.cell, axis) == getattr(entry, axis) for axis in AXES)
        and entry.format in (None, one.cell.format)
    ]
    by_name = [one for one in same if _trained_on(one) == entry.trained_on]
    mixed = [one for one in same if _trained_on(one) is None]  # the cells do not know a mix by its name
    found = by_name or mixed
    trained = {one.cell.train.asked if one.cell.train else None for one in found}
    return [one for one in found if not one.cell.tells_nothing] if len(trained) == 1 else []


def _trained_on(one: NamedCell) -> str | None:
    return one.cell.train.task if one.cell.train else None


def kept_plot(one: Kept, view: View, sheet: Sheet) -> str:
    """What each arm keeps against its accuracy, both with their intervals, as an ``<svg>`` element.

    The better end is at the top, so a loss has its axis upside down.
    """
    entry = one.entry
    accuracy = entry.measure == "accuracy"
    size = 100 if accuracy else 1
    marks = []
    for found, results in one.arms():
        low, high = found.value.interval
        trained = results[0].interval if len(results) == 1 else None
        marks.append(
            Mark(
                arm_title(found.name),
                view.series[found.name],
                100 * mean(arm.mean for arm in results),
                size * found.value.mean,
                x_interval=(100 * trained[0], 100 * trained[1]) if trained else None,
                y_interval=(size * low, size * high),
            )
        )
    on = one.cells[0].label if len(one.cells) == 1 else f"{len(one.cells)} tasks (mean)"
    with drawing(sheet):
        figure, axes = new_scatter(sheet, len(marks))
        if entry.base is not None:
            axes.axhline(size * entry.base, color=TEXT, linewidth=1, linestyle=(0, (2, 2)), zorder=0.5)
        if not accuracy:
            axes.invert_yaxis()
        axes.set_xlabel(f"accuracy in % on {on}")
        axes.set_ylabel("accuracy kept in %" if accuracy else "NLL per token (up is less)")
        draw_marks(figure, axes, marks, sheet)
        words = "; ".join(
            f"{mark.name} {numbers.percent(mark.x / 100)}, {_value(mark.y / size, accuracy)}"
            for mark in marks
        )
        before = "" if entry.base is None else f"; the base {_value(entry.base, accuracy)}"
        return to_svg(figure, sheet, f"{one.label} against accuracy on {on}: {words}{before}.")


def _value(value: float, accuracy: bool) -> str:
    return numbers.percent(value) if accuracy else numbers.nats(value)
