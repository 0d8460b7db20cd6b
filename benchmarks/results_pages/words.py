"""Numbers as the pages write them."""

from __future__ import annotations

from collections.abc import Sequence

from doratune.report.numbers import learning_rate as learning_rate


def ratio(value: float | None) -> str:
    """Two decimals, or a dash."""
    return "–" if value is None else f"{value:.2f}"


def span(values: Sequence[float]) -> str:
    """The smallest and the largest of some ratios."""
    low, high = ratio(min(values)), ratio(max(values))
    return low if low == high else f"{low} to {high}"


def milliseconds(value: float) -> str:
    """Two decimals below ten, one below a hundred, else none."""
    if value < 10:
        return f"{value:.2f} ms"
    return f"{value:.1f} ms" if value < 100 else f"{value:,.0f} ms"


def gigabytes(value: float) -> str:
    """10⁹ bytes."""
    return f"{value / 1e9:.2f} GB"


def percent(share: float) -> str:
    """One decimal."""
    return f"{100 * share:.1f} %"


def percents(interval: tuple[float, float]) -> str:
    """An interval of shares, without the sign of per cent."""
    return "–".join(f"{100 * bound:.1f}" for bound in interval)


def points(value: float) -> str:
    """Percentage points with their sign."""
    return f"{value:+.1f}".replace("-", "−")


def day(time: object) -> str:
    """The day of a time stamp."""
    return f"{time:%Y-%m-%d}"


def table(headings: Sequence[str], rows: Sequence[Sequence[str]], *, text_columns: int = 1) -> str:
    """A Markdown table; columns after the first few are aligned to the right."""
    rules = [":--" if place < text_columns else "--:" for place in range(len(headings))]
    lines = [headings, rules, *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)
