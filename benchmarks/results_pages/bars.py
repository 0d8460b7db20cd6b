"""Bar charts as SVG: text stays text, and both colour schemes of a reader are in the file.

They are written here and not by a plotting library, so that the same records give the same bytes everywhere.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

WIDTH, LABELS, VALUES, ROW, TOP = 720, 250, 130, 26, 44
STYLE = """<style>
text { font: 13px system-ui, sans-serif; fill: #1f2430 } .title { font-weight: 600; font-size: 14px }
.ours { fill: #0072b2 } .other { fill: #9aa0aa }
.axis, .target { stroke: #1f2430 } .target { stroke-width: 2 }
@media (prefers-color-scheme: dark) {
  text { fill: #e3e6ee } .ours { fill: #56b4e9 } .other { fill: #7b8290 }
  .axis, .target { stroke: #e3e6ee }
}
</style>"""


@dataclass(frozen=True)
class Bar:
    """One bar, or a heading where there is no value.

    Attributes:
        label: What it shows.
        value: Its length.
        ours: Whether doratune computed it.
        target: What the value should be at most, or at least.
        text: The value in words.
    """

    label: str
    value: float | None = None
    ours: bool = True
    target: float | None = None
    text: str = ""


def chart(title: str, bars: Sequence[Bar]) -> str:
    """A horizontal bar chart.

    Args:
        title: What is drawn, and in what unit.
        bars: From top to bottom.

    Returns:
        The SVG file.
    """
    longest = max(max(bar.value or 0, bar.target or 0) for bar in bars)
    scale = (WIDTH - LABELS - VALUES) / longest
    height = TOP + ROW * len(bars) + 8
    told = "; ".join(f"{bar.label}: {bar.text}" for bar in bars if bar.value is not None)
    lines = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" role="img">',
        f"<title>{escape(title)}</title>",
        f"<desc>{escape(told)}</desc>",
        STYLE,
        f'<text class="title" x="4" y="20">{escape(title)}</text>',
    ]
    for place, bar in enumerate(bars):
        lines += _bar(bar, TOP + ROW * place, scale)
    return "\n".join([*lines, "</svg>", ""])


def _bar(bar: Bar, top: int, scale: float) -> list[str]:
    middle = top + ROW // 2
    if bar.value is None:
        return [f'<text class="title" x="4" y="{middle}">{escape(bar.label)}</text>']
    kind = "ours" if bar.ours else "other"
    length = bar.value * scale
    end = LABELS + max(length, (bar.target or 0) * scale)
    lines = [
        f'<text x="{LABELS - 8}" y="{middle}" text-anchor="end">{escape(bar.label)}</text>',
        f'<rect class="{kind}" x="{LABELS}" y="{top}" width="{length:.1f}" height="{ROW - 8}"/>',
        f'<text x="{end + 6:.1f}" y="{middle}">{escape(bar.text)}</text>',
        f'<line class="axis" x1="{LABELS}" x2="{LABELS}" y1="{top - 4}" y2="{top + ROW - 4}"/>',
    ]
    if bar.target is not None:
        at = f"{LABELS + bar.target * scale:.1f}"
        lines.append(f'<line class="target" x1="{at}" x2="{at}" y1="{top - 3}" y2="{top + ROW - 5}"/>')
    return lines
