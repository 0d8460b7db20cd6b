"""What plots with a mark per method share: the mark with its intervals, and the name where there is room."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product
from typing import TYPE_CHECKING, Any

from doratune.report.figures import GRID, PAPER, TEXT, colour, marker, shortened

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.transforms import Bbox, BboxBase

#: Where a name may stand: the offset in points from its mark, and the alignment.
PLACES: tuple[tuple[float, float, str, str], ...] = tuple(
    (side * across, up, {1: "left", -1: "right", 0: "center"}[side], vertical)
    for across, up, vertical in (
        (8.0, 0.0, "center"),
        (6.0, 6.0, "bottom"),
        (6.0, -6.0, "top"),
        (8.0, 14.0, "bottom"),
        (8.0, -14.0, "top"),
        (16.0, 24.0, "bottom"),
        (16.0, -24.0, "top"),
    )
    for side in (1, -1, 0)
    if side or up
)


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


def draw_marks(figure: Figure, axes: Axes, marks: Sequence[Mark]) -> None:
    """Draw the marks with their intervals, and write each name where it covers nothing.

    With more names than fit there is a legend of all of them. Everything else must have been drawn before,
    as the names go where there is room.

    Args:
        figure: The figure.
        axes: Its axes.
        marks: What to draw; the first names are placed first.
    """
    for one in marks:
        thin: dict[str, Any] = {"color": colour(one.index), "linewidth": 1.2, "alpha": 0.6, "zorder": 2}
        if one.x_interval:
            axes.hlines(one.y, *one.x_interval, **thin)
        if one.y_interval:
            axes.vlines(one.x, *one.y_interval, **thin)
    handles = [
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
        )[0]
        for one in marks
    ]
    axes.grid(visible=True, color=GRID, linewidth=0.6, alpha=0.6)
    axes.set_axisbelow(True)
    axes.margins(0.12, 0.1)
    if not _write_names(figure, axes, marks):
        axes.legend(
            handles=handles,
            frameon=False,
            loc="lower left",
            bbox_to_anchor=(-0.1, 1.0),
            ncols=2,
            handlelength=1.2,
        )


def _write_names(figure: Figure, axes: Axes, marks: Sequence[Mark]) -> bool:
    """Write the names for which there is room; whether that were all."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.transforms import Bbox

    renderer = FigureCanvasAgg(figure).get_renderer()
    figure.draw_without_rendering()  # the layout is settled
    point = figure.dpi / 72
    centres = [axes.transData.transform((one.x, one.y)) for one in marks]
    taken = [Bbox.from_bounds(x - 4 * point, y - 4 * point, 8 * point, 8 * point) for x, y in centres]
    lines = [box for one in marks for box in _intervals(axes, one, point)]
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
        others = [box for at, box in enumerate(taken) if at != place]
        for avoided, (across, up, horizontal, vertical) in product(([*others, *lines], others), PLACES):
            text.set(position=(across, up), ha=horizontal, va=vertical)
            box = text.get_window_extent(renderer)
            if _inside(box, figure.bbox, axes.bbox) and not any(map(box.overlaps, avoided)):
                taken.append(box)
                break
        else:
            text.remove()
            whole = False
    return whole


def _intervals(axes: Axes, one: Mark, point: float) -> list[Bbox]:
    """Where a mark's intervals are, in pixels."""
    from matplotlib.transforms import Bbox

    ends = []
    if one.x_interval:
        ends.append([(bound, one.y) for bound in one.x_interval])
    if one.y_interval:
        ends.append([(one.x, bound) for bound in one.y_interval])
    return [Bbox.from_extents(*axes.transData.transform(both).ravel()).padded(point) for both in ends]


def _inside(box: Bbox, figure: BboxBase, axes: BboxBase) -> bool:
    """Whether a name stays beside the axis' numbers and inside the figure."""
    return box.x0 >= axes.x0 and box.x1 <= figure.x1 and box.y0 >= axes.y0 and box.y1 <= figure.y1
