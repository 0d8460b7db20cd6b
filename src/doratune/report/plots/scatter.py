"""What plots with a mark per method share: the mark with its intervals, and the name where there is room."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product
from typing import TYPE_CHECKING, Any

from doratune.report.figures import GRID, PAPER, TEXT, WIDE, Sheet, colour, marker, new_figure, shortened

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.transforms import BboxBase

Place = tuple[float, float, str, str]
"""The offset in points of a name from its mark, and the alignment."""

NEAR: list[Place] = [
    *((8.0 * side, 0.0, end, "center") for side, end in ((1, "left"), (-1, "right"))),
    *((0.0, 7.0 * side, "center", end) for side, end in ((1, "bottom"), (-1, "top"))),
    *(
        (5.0 * side, 5.0 * height, across, up)
        for side, across in ((1, "left"), (-1, "right"))
        for height, up in ((1, "bottom"), (-1, "top"))
    ),
]
FEW = 6  # marks that need no legend, as their names can all be written
LINE = 0.19  # inches of a line of the legend


Segment = tuple[tuple[float, float], tuple[float, float]]
"""The ends of a straight line."""


@dataclass(frozen=True)
class Mark:
    """One method.

    Attributes:
        name: Its title.
        index: Its colour and marker.
        x: The figure across.
        y: The figure up.
        x_interval: The interval of ``x``, if it has one.
        y_interval: The interval of ``y``, if it has one.
        filled: Whether the marker is filled.
    """

    name: str
    index: int
    x: float
    y: float
    x_interval: tuple[float, float] | None = None
    y_interval: tuple[float, float] | None = None
    filled: bool = True


def new_scatter(sheet: Sheet, marks: int) -> tuple[Figure, Axes]:
    """An empty figure with room for the legend of so many marks."""
    lines = math.ceil(marks / _columns(sheet)) if marks > FEW else 0
    return new_figure(sheet, 3.1 + LINE * lines)


def draw_marks(
    figure: Figure, axes: Axes, marks: Sequence[Mark], sheet: Sheet, others: Sequence[Segment] = ()
) -> None:
    """Draw the marks with their intervals, and write their names next to them where they cover nothing.

    With many marks, or if a name does not fit, there is a legend of all. Everything else must have been drawn
    before, as the names go where there is room.

    Args:
        figure: The figure.
        axes: Its axes.
        marks: What to draw; the first names are placed first.
        sheet: What it is drawn on.
        others: Other lines that names should not cover.
    """
    lines = list(others)
    for one in marks:
        thin: dict[str, Any] = {"color": colour(one.index), "linewidth": 1.2, "alpha": 0.6, "zorder": 2}
        if one.x_interval:
            axes.hlines(one.y, *one.x_interval, **thin)
            lines.append(((one.x_interval[0], one.y), (one.x_interval[1], one.y)))
        if one.y_interval:
            axes.vlines(one.x, *one.y_interval, **thin)
            lines.append(((one.x, one.y_interval[0]), (one.x, one.y_interval[1])))
        axes.plot(
            [one.x],
            [one.y],
            linestyle="none",
            marker=marker(one.index),
            markersize=7.5,
            color=colour(one.index),
            markerfacecolor=colour(one.index) if one.filled else PAPER,
            zorder=3,
            label=shortened(one.name, 20),
        )
    axes.grid(visible=True, color=GRID, linewidth=0.6, alpha=0.6)
    axes.set_axisbelow(True)
    axes.margins(0.12, 0.1)
    if len(marks) > FEW:
        _legend(axes, sheet)
    if not _write_names(figure, axes, marks, lines) and len(marks) <= FEW:
        _legend(axes, sheet)


def _columns(sheet: Sheet) -> int:
    return 4 if sheet.width >= WIDE else 2


def _legend(axes: Axes, sheet: Sheet) -> None:
    axes.legend(
        frameon=False,
        loc="lower left",
        bbox_to_anchor=(-0.1, 1.0),
        ncols=_columns(sheet),
        handlelength=1.2,
        labelspacing=0.3,
    )


def _write_names(figure: Figure, axes: Axes, marks: Sequence[Mark], lines: Sequence[Segment]) -> bool:
    """Write the names for which there is room; whether that were all."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.transforms import Bbox

    renderer = FigureCanvasAgg(figure).get_renderer()
    figure.draw_without_rendering()  # the layout is settled
    point = figure.dpi / 72
    centres = [axes.transData.transform((one.x, one.y)) for one in marks]
    taken = [Bbox.from_bounds(x - 4 * point, y - 4 * point, 8 * point, 8 * point) for x, y in centres]
    drawn = [Bbox(axes.transData.transform(line)).padded(point) for line in lines]
    whole = True
    for place, one in enumerate(marks):
        text = axes.annotate(
            shortened(one.name, 20),
            (one.x, one.y),
            xytext=(0, 0),
            textcoords="offset points",
            fontsize=8.5,
            color=TEXT,
            annotation_clip=False,
        )
        text.set_in_layout(False)
        marked = [box for at, box in enumerate(taken) if at != place]
        for avoided, (across, up, horizontal, vertical) in product(([*marked, *drawn], marked), NEAR):
            text.set(position=(across, up), ha=horizontal, va=vertical)
            box = text.get_window_extent(renderer)
            if _inside(box, figure.bbox, axes.bbox) and not any(map(box.overlaps, avoided)):
                taken.append(box)
                break
        else:
            text.remove()
            whole = False
    return whole


def _inside(box: BboxBase, figure: BboxBase, axes: BboxBase) -> bool:
    """Whether a name stays beside the axis' numbers and inside the figure."""
    return box.x0 >= axes.x0 and box.x1 <= figure.x1 and box.y0 >= axes.y0 and box.y1 <= figure.y1
