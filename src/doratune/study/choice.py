"""How a learning rate is chosen on validation rows, and whether the list of rates was long enough.

The rule, for every arm alike: of the rates whose accuracy is within one standard error of the best, the one
whose held-out negative log-likelihood is lowest, and of equals the smallest. Without likelihoods, as in
generated answers, it is the most accurate, and of equals the smallest. A rate with which training diverged is
a lost try.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from doratune.study.rates import Added


@dataclass(frozen=True)
class Tried:
    """A learning rate and its result on the validation rows."""

    rate: float
    correct: float  #: the sum of the rows' credits
    rows: int
    nll: float | None = None  #: mean negative log-likelihood of the right answers; None if unknown
    diverged: bool = False

    @property
    def accuracy(self) -> float:
        """The share of correct validation rows."""
        return self.correct / self.rows

    @property
    def standard_error(self) -> float:
        """That of the accuracy, over the rows."""
        return math.sqrt(self.accuracy * (1 - self.accuracy) / self.rows)


Tries = Mapping[int, Sequence[Tried]]
"""What an arm tried, by seed; with every seed the same rates, ascending."""


def choose_rate(tried: Iterable[Tried]) -> float | None:
    """The learning rate that the rule above chooses; None if all diverged."""
    finite = [one for one in tried if not one.diverged]
    if not finite:
        return None
    best = max(finite, key=lambda one: one.accuracy)
    close = [one for one in finite if one.accuracy >= best.accuracy - best.standard_error]
    likelihoods = {one.rate: one.nll for one in close if one.nll is not None}
    if len(likelihoods) == len(close):
        return min(close, key=lambda one: (likelihoods[one.rate], one.rate)).rate
    return min(finite, key=lambda one: (-one.accuracy, one.rate)).rate


def choose_shared_rate(first: Tries, second: Tries) -> float | None:
    """The rate that suits two arms best together: the rule on the means over both arms and all seeds.

    Returns:
        None if no rate was tried for both, or each diverged with some arm and seed.
    """
    by_rate: dict[float, list[Tried]] = {}
    for tries in (first, second):
        for tried in tries.values():
            for one in tried:
                by_rate.setdefault(one.rate, []).append(one)
    runs = len(first) + len(second)
    return choose_rate(_mean(same) for same in by_rate.values() if len(same) == runs)


def extended(tries: Iterable[Tries], added: Added, most: int) -> Added:
    """The list of rates after those tried: one more at each end at which any arm's and seed's best is.

    Args:
        tries: What each arm tried.
        added: How many rates the list has in addition to the plan's.
        most: How many may be added at each end.
    """
    below = above = False
    for tried in (one for arm in tries for one in arm.values()):
        best = choose_rate(tried)
        below |= best == tried[0].rate
        above |= best == tried[-1].rate
    return Added(
        added.below + (below and added.below < most),
        added.above + (above and added.above < most),
    )


def _mean(same: Sequence[Tried]) -> Tried:
    """The mean result of several runs with one rate, which answered the same rows."""
    known = [one.nll for one in same if one.nll is not None]
    return Tried(
        same[0].rate,
        math.fsum(one.correct for one in same) / len(same),
        same[0].rows,
        math.fsum(known) / len(known) if len(known) == len(same) else None,
        any(one.diverged for one in same),
    )
