"""Numbers and lists as sentences have them."""

from __future__ import annotations

from collections.abc import Sequence

MINUS = "\N{MINUS SIGN}"


def signed(value: float, digits: int = 1) -> str:
    """0.831 as "+0.8" and a negative one with a real minus; what rounds to zero has no sign."""
    text = f"{value:+.{digits}f}"
    return f"{0:.{digits}f}" if float(text) == 0 else text.replace("-", MINUS)


def listed(names: Sequence[str], last: str = "and") -> str:
    """Three names as "a, b and c"; ``last`` is the word before the last one."""
    return f" {last} ".join([", ".join(names[:-1]), names[-1]] if len(names) > 1 else names)
