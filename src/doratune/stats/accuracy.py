"""Accuracy with its interval, and the accuracy of a constant answer."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Hashable, Sequence
from statistics import NormalDist
from typing import NamedTuple

from doratune.errors import InputError


class Accuracy(NamedTuple):
    """A share of correct rows with its Wilson 95 % score interval, all between 0 and 1."""

    value: float
    low: float
    high: float


def accuracy_with_interval(correct: float, total: int) -> Accuracy:
    """Accuracy and its Wilson 95 % score interval (without continuity correction).

    With z = 1.96, p the share and n the total: ``(p + z²/2n ± z √(p(1 - p)/n + z²/4n²)) / (1 + z²/n)``.
    ``scipy.stats.binomtest`` gives the same, but importing it takes a tenth of a short evaluation's time.

    Args:
        correct: How many rows were answered correctly; one on which candidates tied counts as a fraction.
            Fractions vary less than whole rows of the same mean, so the interval errs on the safe side.
        total: How many rows there were.

    Raises:
        InputError: If there are no rows, or ``correct`` is not between 0 and ``total``.
    """
    if total < 1 or not 0 <= correct <= total:
        raise InputError(
            "no accuracy can be computed",
            got=f"{correct} correct of {total} rows",
            expected="at least one row, and between none and all of them correct",
        )
    share, z = correct / total, NormalDist().inv_cdf(0.975)
    centre = share + z**2 / (2 * total)
    half = z * math.sqrt(share * (1 - share) / total + z**2 / (4 * total**2))
    low, high = ((centre + side) / (1 + z**2 / total) for side in (-half, half))
    return Accuracy(share, max(0.0, min(share, low)), min(1.0, max(share, high)))


def majority_share(golds: Sequence[Hashable]) -> float:
    """The accuracy of always giving the most frequent correct answer.

    Args:
        golds: The correct answer of each row, as a label or as an index.

    Raises:
        InputError: If ``golds`` is empty.
    """
    if not golds:
        raise InputError("no majority share can be computed", got="no rows", expected="at least one row")
    return Counter(golds).most_common(1)[0][1] / len(golds)
