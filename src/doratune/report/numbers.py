"""Formats of numbers, used by every table and plot, so that they agree."""

from __future__ import annotations

import math

from doratune.byte_size import byte_size as byte_size
from doratune.duration import duration as duration
from doratune.wording import MINUS as MINUS
from doratune.wording import signed as signed


def counted(count: int, noun: str) -> str:
    """3 and "seed" as "3 seeds", 1 as "1 seed"."""
    return f"{count:,} {noun}{'' if count == 1 else 's'}"


def percent(fraction: float, digits: int = 1) -> str:
    """0.805 as "80.5 %"."""
    return f"{100 * fraction:.{digits}f} %"


def interval(bounds: tuple[float, float]) -> str:
    """(0.763, 0.841) as "76.3–84.1", in percent."""
    return f"{100 * bounds[0]:.1f}–{100 * bounds[1]:.1f}"


def points(difference: float) -> str:
    """A difference in percentage points with its sign: "+1.5 points"."""
    return f"{signed(difference)} points"


def lost_points(share: float) -> str:
    """0.167 as "16.7 points", without a sign."""
    return f"{100 * share:.1f} points"


def signed_interval(bounds: tuple[float, float]) -> str:
    """(-0.4, 2.83) as "−0.4 to +2.8", in the unit they are in."""
    return f"{signed(bounds[0])} to {signed(bounds[1])}"


def digits_of(bounds: tuple[float, float]) -> int:
    """The decimals that show two significant digits of an interval, and that its bounds differ.

    5 for 0.00021 to 0.00042, 0 for 10 to 22.
    """
    wanted = ((1, max(map(abs, bounds))), (0, bounds[1] - bounds[0]))
    return max(0, *(more - math.floor(math.log10(size)) for more, size in wanted if size > 0), 0)


def correlation(value: float | None) -> str:
    """0.831 as "+0.83"; "–" where it is not defined."""
    return "–" if value is None else signed(value, 2)


def slope(value: float | None) -> str:
    """Two significant digits with the sign: "+1.2e−05", "−0.31"; "–" where it is not defined."""
    return "–" if value is None else f"{value:+.2g}".replace("-", MINUS)


def p_value(p: float) -> str:
    """0.0312 as "p = 0.031"; what would round to zero as "p < 0.001"."""
    return "p < 0.001" if p < 0.001 else f"p = {p:.3f}"


def gigabytes(count: int) -> str:
    """2 210 000 000 bytes as "2.21 GB" (10⁹ bytes)."""
    return f"{count / 1e9:.2f} GB"


def nats(value: float) -> str:
    """0.69315 as "0.693"."""
    return f"{value:.3f}"


def perplexity(nats_per_token: float) -> str:
    """3.05 as "21.1"; beyond a million, as a power of ten."""
    if nats_per_token > math.log(1e6):
        return f"10^{nats_per_token / math.log(10):.0f}"
    return f"{math.exp(nats_per_token):.4g}"


def large(count: int) -> str:
    """2 441 216 as "2.44 M"; three significant digits or so, in thousands, millions or billions."""
    for size, unit in ((1e9, "B"), (1e6, "M"), (1e3, "k")):
        if count >= size:
            return f"{count / size:.2f} {unit}"
    return str(count)


def rate(per_second: float) -> str:
    """1234.5 as "1,234" and 3.21 as "3.2"."""
    return f"{per_second:,.0f}" if per_second >= 100 else f"{per_second:.1f}"


def learning_rate(rate: float | None) -> str:
    """0.0002 as "2e-4"; "–" where it is not known."""
    if rate is None:
        return "–"
    digits, exponent = f"{rate:.2e}".split("e")
    return f"{digits.rstrip('0').rstrip('.')}e{int(exponent)}"
