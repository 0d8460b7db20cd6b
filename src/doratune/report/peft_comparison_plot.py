"""The accuracies of PEFT's ``method_comparison`` with their intervals, over the band of LoRA's."""

from __future__ import annotations

from collections.abc import Sequence

from doratune.report import numbers
from doratune.report.blocks import Figure, Figures
from doratune.report.figures import PAPER, WIDE, Sheet, colour, drawing, new_figure, shortened, to_svg
from doratune.report.plots.rows import dotted, line_label, whisker

LORA, OTHER, QUIET = 1, 2, 0  # colours
MARKS = {"higher": "^", "lower": "v", "undecided": "o"}
NOTE = (
    "A filled triangle can be told from LoRA and points up if higher; a hollow circle cannot. The square is "
    "LoRA and the band its interval. Intervals that overlap may still differ: the table has the test."
)

Shown = tuple[str, float, tuple[float, float], str | None]
"""Name, accuracy, interval and outcome."""


def figures(rows: Sequence[Shown], band: tuple[float, float] | None, name: str) -> Figures:
    """One figure, drawn when a page needs it, also at the width of the page.

    Args:
        rows: What to draw.
        band: LoRA's interval, if there is LoRA.
        name: Prefix of the ids inside, unique in the page.
    """

    def drawn() -> list[Figure]:
        sheet = Sheet(f"plot-{name}")
        wide = plot(rows, band, sheet.wide())
        return [Figure("Accuracy on GSM8K with 95 % intervals", plot(rows, band, sheet), wide=wide)]

    return Figures(drawn, NOTE if band else "")


def plot(rows: Sequence[Shown], band: tuple[float, float] | None, sheet: Sheet) -> str:
    """A line per result, as an ``<svg>`` element."""
    longest = 60 if sheet.width >= WIDE else 30
    with drawing(sheet):
        figure, axes = new_figure(sheet, 0.75 + 0.42 * len(rows))
        if band:
            axes.axvspan(100 * band[0], 100 * band[1], color=colour(LORA), alpha=0.15, linewidth=0)
        for place, (name, share, interval, outcome) in enumerate(rows):
            plain = outcome is None
            index = (LORA if band else QUIET) if plain else QUIET if outcome == "undecided" else OTHER
            marker = "s" if plain else MARKS[outcome or ""]
            fill = PAPER if outcome == "undecided" else None
            low, high = interval
            whisker(axes, place, 100 * share, (100 * low, 100 * high), index, marker, fill)
            line_label(axes, place, shortened(name, longest), numbers.percent(share))
        axes.set(
            ylim=(len(rows) - 0.5, -0.7),
            yticks=[],
            xlabel="accuracy in %; band: LoRA's interval" if band else "accuracy in %",
        )
        dotted(axes)
        words = "; ".join(
            f"{name} {numbers.percent(share)}, interval {numbers.interval(interval)}"
            for name, share, interval, _ in rows
        )
        return to_svg(figure, sheet, f"Accuracy on GSM8K: {words}.")
