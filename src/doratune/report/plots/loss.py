"""Training loss over steps, a line per arm, as SVG."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from doratune.records.study import StudyArm, arm_name
from doratune.report.figures import GRID, Sheet, colour, drawing, new_panels, shortened, to_svg
from doratune.report.plots.lines import (
    BROAD,
    apart,
    draw_panels,
    draw_together,
    line,
    name_axes,
    on,
    reference_of,
)
from doratune.report.view import Training, View, arm_title

if TYPE_CHECKING:
    from matplotlib.axes import Axes

CURVE_POINTS = 200  # of one line: more cannot be seen and makes the page large
PANEL_POINTS = 60  # of one line if every arm has a panel

Curve = list[tuple[int, float, float, float]]  #: (step, mean, least, most) over the seeds


def loss_plot(training: Training, view: View, sheet: Sheet) -> str | None:
    """Training loss over steps, a line per arm, as an ``<svg>`` element; None without a finite loss.

    The line is a running mean. Behind it is the loss as logged, or the span of several seeds. A panel below
    shows how far a few arms are from the reference.
    """
    curves = {
        arm.name: curve
        for arm in training.arms
        if (curve := _curve(arm, PANEL_POINTS if apart(training.arms) else CURVE_POINTS))
    }
    arms = [arm for arm in training.arms if arm.name in curves]
    if not arms:
        return None

    def draw(axes: Axes, arm: StudyArm, look: dict[str, Any], behind: bool) -> None:
        steps, means, low, high = zip(*curves[arm.name], strict=True)
        axes.plot(steps, means, marker="o" if len(steps) == 1 else None, **look)
        if behind:
            return
        shade = colour(view.series[arm.name])
        if len(arm.runs) > 1:
            axes.fill_between(steps, low, high, color=shade, alpha=0.15, linewidth=0)
        elif window(len(steps)) > 1:
            logged = [(step, loss) for step, loss in arm.runs[0].curve if loss is not None]
            axes.plot(*zip(*logged, strict=True), color=shade, linewidth=0.8, alpha=0.35, zorder=1)

    reference = reference_of(arms)
    distances = _distances(reference, arms, curves)
    with drawing(sheet):
        if distances and not apart(arms):
            figure, (axes, below) = new_panels(sheet, 3.9, [3, 1.3])
            draw_together(axes, arms, view, draw)
            axes.set_ylabel("training loss")
            _draw_distances(below, reference, distances, view)
            panels = [axes]
        else:
            figure, panels = draw_panels(arms, view, sheet, draw)
            name_axes(figure, panels, "step", "training loss")
        for axes in panels:
            axes.locator_params(axis="x", integer=True, nbins=4 if len(panels) > 1 else "auto")
        ends = "; ".join(
            f"{arm_title(arm.name)} from {curves[arm.name][0][1]:.3f} to {curves[arm.name][-1][1]:.3f}"
            for arm in arms
        )
        most = "".join(
            f" {arm_title(arm.name)} is at most {max(abs(loss) for _, loss in points):.3f} from "
            f"{arm_name(reference.name)}."
            for arm, points in distances
        )
        return to_svg(figure, sheet, f"Training loss over steps{on(training)}: {ends}.{most}")


def _distances(
    reference: StudyArm, arms: Sequence[StudyArm], curves: Mapping[str, Curve]
) -> list[tuple[StudyArm, list[tuple[int, float]]]]:
    """Each other arm's loss minus the reference's, at the steps both have."""
    means = {step: mean for step, mean, _, _ in curves[reference.name]}
    lines = [
        (arm, [(step, mean - means[step]) for step, mean, _, _ in curves[arm.name] if step in means])
        for arm in arms
        if arm is not reference
    ]
    return [(arm, points) for arm, points in lines if len(points) > 1]


def _draw_distances(
    axes: Axes,
    reference: StudyArm,
    distances: Sequence[tuple[StudyArm, list[tuple[int, float]]]],
    view: View,
) -> None:
    axes.axhline(0, color=colour(view.series[reference.name]), **BROAD)
    for arm, points in distances:
        axes.plot(*zip(*points, strict=True), **line(arm, view))
    axes.locator_params(axis="y", nbins=3)
    axes.set(xlabel="step", ylabel=f"minus {shortened(arm_name(reference.name), 10)}")
    axes.grid(visible=True, axis="y", color=GRID, linewidth=0.6, alpha=0.6)


def window(points: int) -> int:
    """The number of points in a curve's running mean."""
    return max(1, points // 20)


def _curve(arm: StudyArm, points: int) -> Curve:
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
    kept = np.unique(np.linspace(0, len(steps) - 1, points).round().astype(int))
    rows = zip(kept, means.mean(0)[kept], means.min(0)[kept], means.max(0)[kept], strict=True)
    return [(steps[place], float(mean), float(least), float(most)) for place, mean, least, most in rows]
