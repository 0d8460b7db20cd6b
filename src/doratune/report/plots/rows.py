"""What plots with a row per result share: the result with its interval, its label, and the axes."""

from __future__ import annotations

from typing import TYPE_CHECKING

from doratune.report.figures import GRID, PAPER, colour

if TYPE_CHECKING:
    from matplotlib.axes import Axes


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
