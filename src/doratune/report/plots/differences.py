"""The differences of two arms on every cell and pooled, as a forest plot in SVG."""

from __future__ import annotations

from doratune.records.study import IN_WORDS, NO_VERDICT, arm_name
from doratune.report import numbers
from doratune.report.figures import PAPER, TEXT, WIDE, Sheet, colour, drawing, new_figure, shortened, to_svg
from doratune.report.plots.rows import dotted, line_label, whisker
from doratune.report.view import Pair, View

NOTHING = "no verdict: neither is shown to learn"  #: of a cell that tells nothing


def forest_plot(pair: Pair, view: View, sheet: Sheet, title: str = "") -> str:
    """The differences of one pair on every cell, and pooled, around a line at zero, as an ``<svg>``.

    Cells that tell nothing are grey like the base model. The axis covers only the others, and an arrow marks
    a cell that leaves it.

    Args:
        pair: What to draw.
        view: Where the colours come from.
        sheet: What it is drawn on.
        title: The title, if the page does not show it.
    """
    wide = sheet.width >= WIDE
    with drawing(sheet):
        figure, axes = new_figure(sheet, 0.75 + 0.5 * len(pair.all) + (0.4 if title else 0))
        low, high = _range(pair)
        for place, one in enumerate(pair.all):
            found = one.difference
            index = 0 if one.tells_nothing else view.series[pair.to_arm]
            fill = PAPER if found.outcome in ("undecided", NO_VERDICT) else colour(index)
            shown = max(low, found.interval[0]), min(high, found.interval[1])
            whisker(axes, place, found.points, shown, index, "o" if one.cell else "D", fill)
            for end, arrow in ((low, "<"), (high, ">")):
                if not low <= found.interval[end == high] <= high:
                    axes.plot([end], [place], color=colour(index), marker=arrow, markersize=7, clip_on=False)
            text = f"{numbers.signed(found.points)}  ({numbers.signed_interval(found.interval)})"
            remark = NOTHING if wide and one.tells_nothing else ""
            line_label(axes, place, shortened(one.label, 40 if wide else 26), text, remark)
        axes.axvline(0, color=TEXT, linewidth=1, linestyle=(0, (2, 2)), zorder=0.5)
        axes.set(xlim=(low, high), ylim=(len(pair.all) - 0.5, -0.6), yticks=[])
        axes.set_xlabel(f"points; right of 0: {shortened(arm_name(pair.to_arm), 24)} {IN_WORDS['better']}")
        dotted(axes)
        if title:
            axes.set_title(title, loc="left", fontsize=9.5)
        words = "; ".join(
            f"{one.label} {numbers.points(one.difference.points)}, "
            f"interval {numbers.signed_interval(one.difference.interval)}"
            f"{f', {NOTHING}' if one.tells_nothing else ''}"
            for one in pair.all
        )
        return to_svg(figure, sheet, f"{pair.name}: {words}.")


def _range(pair: Pair) -> tuple[float, float]:
    """The range of the axis: the differences that tell something, and zero."""
    telling = [one for one in pair.all if not one.tells_nothing]
    bounds = [bound for one in telling or pair.all for bound in one.difference.interval]
    low, high = min(0.0, *bounds), max(0.0, *bounds)
    room = 0.08 * (high - low) or 1.0
    return low - room, high + room
