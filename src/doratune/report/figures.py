"""Small figures as SVG that takes its colours and its font from the page around it.

matplotlib draws with stand-in colours, which are then replaced by CSS variables, so that one figure serves
light, dark and print. Text stays text. The figures are small on purpose: on a phone they can still be read.
"""

from __future__ import annotations

import io
import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

WIDTH = 4.0  # inches of 72 points, so 288 units: a little less than a phone is wide
SERIES = 7  # colours in the style sheet, --s0 to --s6

TEXT, GRID, PAPER = "#000001", "#000002", "#000003"
STAND_INS = {TEXT: "var(--text)", GRID: "var(--grid)", PAPER: "var(--paper)"} | {
    f"#00010{index}": f"var(--s{index})" for index in range(SERIES)
}
MARKERS = ("x", "o", "D", "^", "s", "v", "P")
DASHES = ("solid", "solid", (0, (3, 1.5)), (0, (1, 1)), (0, (6, 1, 1, 1)), (0, (3, 1)), (0, (8, 2)))

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


@contextmanager
def drawing(name: str) -> Iterator[None]:
    """Everything drawn and written inside has the page's looks and the same ids every time.

    Args:
        name: Prefix of the ids, unique in the page.
    """
    import matplotlib as mpl

    with mpl.rc_context(RC), mpl.rc_context({"svg.hashsalt": name}):
        yield


def colour(index: int) -> str:
    """The stand-in for one of the ``SERIES`` colours."""
    return f"#00010{index}"


def shortened(name: str, length: int = 20) -> str:
    """A name that fits next to its numbers; the table has it in full."""
    return name if len(name) <= length else f"{name[: length // 2]}…{name[1 + length // 2 - length :]}"


def new_figure(height: float) -> tuple[Figure, Axes]:
    """An empty figure, ``height`` inches high. It does not use pyplot, which keeps global state."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(WIDTH, height), layout="constrained")
    return figure, figure.add_subplot()


def to_svg(figure: Figure, name: str, words: str) -> str:
    """The figure as an element for a page: no prolog, ids that are unique in the page, the page's colours.

    Args:
        figure: What was drawn.
        name: Prefix of the ids inside, unique in the page.
        words: What the figure shows, for those who do not see it.
    """
    from html import escape

    buffer = io.StringIO()
    figure.savefig(buffer, format="svg", metadata=dict.fromkeys(("Creator", "Date", "Format", "Type")))
    drawn = buffer.getvalue()
    drawn = drawn[drawn.index("<svg") :].strip()
    drawn = re.sub(r"<metadata>.*?</metadata>", "", drawn, flags=re.DOTALL)
    drawn = re.sub(r'(\bid="|href="#|url\(#)', rf"\g<1>{name}-", drawn)
    for stand_in, variable in STAND_INS.items():
        drawn = drawn.replace(stand_in, variable)
    view = re.search(r'viewBox="[^"]+"', drawn)
    if view is None:
        raise RuntimeError("matplotlib wrote an SVG without a viewBox")
    inner = drawn[drawn.index(">") + 1 :]
    return f'<svg {view[0]} role="img" aria-label="{escape(words)}">{inner}'
