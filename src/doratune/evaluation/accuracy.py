"""Accuracy with its uncertainty, and the share that a constant answer would reach."""

from __future__ import annotations

from collections import Counter
from collections.abc import Hashable, Sequence
from typing import NamedTuple

from scipy.stats import binomtest

from doratune.errors import InputError


class Accuracy(NamedTuple):
    """A share of correct rows with its Wilson 95 % score interval, all between 0 and 1."""

    value: float
    low: float
    high: float


def accuracy_with_interval(correct: int, total: int) -> Accuracy:
    """Accuracy and its Wilson 95 % score interval (without continuity correction).

    Args:
        correct: How many rows were answered correctly.
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
    interval = binomtest(correct, total).proportion_ci(confidence_level=0.95, method="wilson")
    return Accuracy(correct / total, float(interval.low), float(interval.high))


def majority_share(golds: Sequence[Hashable]) -> float:
    """The accuracy of always giving the most frequent right answer.

    Args:
        golds: The right answer of each row, as a label or as an index.

    Raises:
        InputError: If ``golds`` is empty.
    """
    if not golds:
        raise InputError("no majority share can be computed", got="no rows", expected="at least one row")
    return Counter(golds).most_common(1)[0][1] / len(golds)
