"""Small SVG figures that take their colours and font from the page.

matplotlib draws with stand-in colours, which are then replaced by CSS variables, so that one figure serves
light, dark and print. Text stays text. The figures are small so that they can be read on a phone. ``as_file``
turns one into a separate file.
"""

from __future__ import annotations

import io
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from importlib import resources
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

NARROW = 4.0  # inches of 72 points, so 288 units: slightly narrower than a phone
WIDE = 8.4  # a figure alone in a row of the page, with letters as large as those of two in a row
SERIES = 7  # colours in the style sheet, --s0 to --s6

TEXT, GRID, PAPER = "#000001", "#000002", "#000003"
STAND_INS = {TEXT: "var(--text)", GRID: "var(--grid)", PAPER: "var(--paper)"} | {
    f"#00010{index}": f"var(--s{index})" for index in range(SERIES)
}
# The first is the base model's. The 6 other colours, 13 markers and 7 dashes repeat at different times, so
# that 78 series differ in colour or marker, and 42 lines in colour or dash.
MARKERS = ("x", "o", "D", "^", "s", "v", "P", "*", "X", "<", ">", "p", "h", "d")
DASHES = (
    *("solid", "solid", (0, (3, 1.5)), (0, (1, 1)), (0, (6, 1, 1, 1)), (0, (3, 1)), (0, (8, 2))),
    (0, (5, 1, 1, 1, 1, 1)),
)

FONTS = "system-ui, -apple-system, 'Segoe UI', Roboto, 'Helvetica Neue', Arial, sans-serif"
THEMES = {"light": 1, "dark": 2}  #: the ":root" of the style sheet that has the colours

RC: dict[Any, Any] = {
    "svg.fonttype": "none",
    "text.parse_math": False,
    "font.size": 9.5,
    "text.color": TEXT,
    "axes.labelcolor": TEXT,
    "axes.edgecolor": GRID,
    "axes.facecolor": "none",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "xtick.color": GRID,
    "ytick.color": GRID,
    "xtick.labelcolor": TEXT,
    "ytick.labelcolor": TEXT,
    "figure.facecolor": "none",
}


@dataclass(frozen=True)
class Sheet:
    """The space that a figure is drawn in.

    Attributes:
        name: Prefix of the ids inside, unique in the page.
        width: In inches.
    """

    name: str
    width: float = NARROW

    def wide(self) -> Sheet:
        """The sheet for the same figure alone in a row of the page."""
        return Sheet(f"{self.name}-wide", WIDE)


@contextmanager
def drawing(sheet: Sheet) -> Iterator[None]:
    """Draw with the page's style, and write the same ids every time, inside the ``with`` statement."""
    import matplotlib as mpl

    with mpl.rc_context(RC), mpl.rc_context({"svg.hashsalt": sheet.name}):
        yield


def colour(index: int) -> str:
    """The stand-in for a series' colour; 0 is the base model's."""
    return f"#00010{_turn(index, SERIES)}"


def marker(index: int) -> str:
    """A series' marker; 0 is the base model's."""
    return MARKERS[_turn(index, len(MARKERS))]


def dash(index: int) -> Any:
    """The style of a series' line; 0 is the base model's."""
    return DASHES[_turn(index, len(DASHES))]


def _turn(index: int, count: int) -> int:
    """The place in a list of looks, of which the first is only for series 0."""
    return 1 + (index - 1) % (count - 1) if index else 0


def shortened(name: str, length: int = 20) -> str:
    """A name shortened to fit next to its numbers; the table has it in full."""
    return name if len(name) <= length else f"{name[: length // 2]}…{name[1 + length // 2 - length :]}"


def new_figure(sheet: Sheet, height: float) -> tuple[Figure, Axes]:
    """An empty figure, ``height`` inches high, made without pyplot, which keeps global state."""
    figure, (axes,) = new_panels(sheet, height, [1])
    return figure, axes


def new_panels(sheet: Sheet, height: float, shares: Sequence[float]) -> tuple[Figure, list[Axes]]:
    """An empty figure with panels under one another that share the x axis.

    Args:
        sheet: The sheet to draw on.
        height: Height of all panels together, in inches.
        shares: Each panel's share of the height.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(sheet.width, height), layout="constrained")
    panels = figure.subplots(len(shares), 1, sharex=True, height_ratios=shares, squeeze=False)
    return figure, list(panels[:, 0])


def new_grid(sheet: Sheet, count: int, height: float) -> tuple[Figure, list[Axes]]:
    """An empty figure with small panels that share both axes: two in a row, or four on a wide sheet.

    Args:
        sheet: The sheet to draw on.
        count: How many panels.
        height: Height of a panel, in inches.
    """
    from matplotlib.figure import Figure

    columns = 4 if sheet.width >= WIDE else 2
    rows = -(-count // columns)
    figure = Figure(figsize=(sheet.width, 0.5 + height * rows), layout="constrained")
    panels = list(figure.subplots(rows, columns, sharex=True, sharey=True, squeeze=False).flat)
    for axes in panels[count:]:
        axes.set_visible(False)
    for axes in panels[max(0, count - columns) : count]:  # the lowest of each column
        axes.tick_params(axis="x", labelbottom=True)
    return figure, panels[:count]


def to_svg(figure: Figure, sheet: Sheet, words: str) -> str:
    """The figure as an element for a page: no prolog, ids that are unique in the page, the page's colours.

    Args:
        figure: The figure.
        sheet: The sheet it was drawn on.
        words: The text alternative.
    """
    from html import escape

    buffer = io.StringIO()
    figure.savefig(buffer, format="svg", metadata=dict.fromkeys(("Creator", "Date", "Format", "Type")))
    drawn = buffer.getvalue()
    drawn = drawn[drawn.index("<svg") :].strip()
    drawn = re.sub(r"<metadata>.*?</metadata>", "", drawn, flags=re.DOTALL)
    drawn = re.sub(r'(\bid="|href="#|url\(#)', rf"\g<1>{sheet.name}-", drawn)
    for stand_in, variable in STAND_INS.items():
        drawn = drawn.replace(stand_in, variable)
    view = re.search(r'viewBox="[^"]+"', drawn)
    if view is None:
        raise RuntimeError("matplotlib wrote an SVG without a viewBox")
    inner = drawn[drawn.index(">") + 1 :]
    return f'<svg {view[0]} role="img" aria-label="{escape(words)}">{inner}'


def as_file(element: str, theme: Literal["light", "dark"] | None = None) -> str:
    """An element of a page as a separate file.

    Args:
        element: The result of ``to_svg``.
        theme: The colours to use; None: light or dark as the reader prefers.
    """
    view = re.search(r'viewBox="0 0 ([\d.]+) ([\d.]+)"', element)
    if view is None:
        raise RuntimeError("matplotlib wrote an SVG that does not begin at 0 0")
    style = f"{_palettes()}\n" if theme is None else f"text {{ font-family: {FONTS}; }}\n"
    head = (
        '<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink" '
        f'width="{view[1]}pt" height="{view[2]}pt" style="background: var(--paper)"'
    )
    start, _, inside = element.partition(">")
    drawn = f"{start.replace('<svg', head, 1)}>\n<style>{style}</style>{inside}\n"
    if theme is None:
        return drawn
    colours = dict(re.findall(r"--([\w-]+): (#\w{6})", _palettes().split(":root")[THEMES[theme]]))
    return re.sub(r"var\(--([\w-]+)\)", lambda found: colours[found[1]], drawn)


@cache
def _palettes() -> str:
    """The colours at the top of the style sheet: light, dark, print."""
    sheet = (resources.files("doratune.report") / "templates" / "report.css").read_text(encoding="utf-8")
    return sheet.partition("\n* {")[0]
