"""The learning rates of a search: a plan's list, and the rates added where the best is at an end of it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Added:
    """How many rates are added to a list, for every arm alike, so that all have as many tries.

    Attributes:
        below: Below its smallest.
        above: Above its largest.
    """

    below: int = 0
    above: int = 0


NONE_ADDED = Added()
"""The plan's list as it is."""


def extended_rates(rates: Sequence[float], added: Added) -> list[float]:
    """An ascending list with rates added at its ends, each by the factor between the two rates there.

    Args:
        rates: The list, ascending; two or more if any are added.
        added: How many are added.
    """
    found = list(rates)
    for _ in range(added.below):
        found.insert(0, _beyond(found[0], found[1]))
    for _ in range(added.above):
        found.append(_beyond(found[-1], found[-2]))
    return found


def _beyond(end: float, before: float) -> float:
    """The rate after ``before`` and ``end``; 0 or infinity where it leaves the range of numbers."""
    return _rounded(end * end / before) if 0 < end < math.inf else end


def _rounded(rate: float) -> float:
    """To the digits that reports show, so that a rate can be copied from them."""
    return float(f"{rate:.3g}")
