"""What the values of rows mean: their unit, and whether more of them is better."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Scale:
    """How a measure of single rows is told.

    Attributes:
        unit: The unit of its differences, in the plural.
        factor: From a row's value to that unit.
        digits: Decimals in sentences.
        higher_is_better: Whether more of it is better.
        shares: Whether a row counts from 0 to 1 and equal arms agree on most rows, as with accuracy.
            Intervals then have made-up rows, one seed has an exact test, and the rows needed are estimated.
    """

    unit: str
    factor: float = 1.0
    digits: int = 3
    higher_is_better: bool = False
    shares: bool = False

    def signed(self, value: float) -> str:
        """A difference in words: "+0.3"; what rounds to zero has no sign."""
        text = f"{value:+.{self.digits}f}"
        return f"{0:.{self.digits}f}" if float(text) == 0 else text.replace("-", "\N{MINUS SIGN}")


ACCURACY = Scale("points", factor=100, digits=1, higher_is_better=True, shares=True)
"""1 for a right row, 0 for a wrong one, a part where candidates tied; differences in percentage points."""
