"""The choice of a learning rate: the same rule for every arm."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Tried:
    """A learning rate and what it came to on the validation rows."""

    rate: float
    correct: int
    rows: int

    @property
    def accuracy(self) -> float:
        """Share of the validation rows that were right."""
        return self.correct / self.rows


def choose_rate(tried: Sequence[Tried]) -> float:
    """The learning rate with the highest accuracy; of several the smallest."""
    return min(tried, key=lambda one: (-one.accuracy, one.rate)).rate
