"""Shares of correct answers of which only the totals are known, so that rows cannot be paired."""

from __future__ import annotations

from typing import NamedTuple


class Unpaired(NamedTuple):
    """The second share minus the first, as a share of rows, not in points."""

    value: float
    low: float  #: of Newcombe's 95 % interval
    high: float
    p_value: float  #: of ``two_proportion_p``


def unpaired_difference(from_correct: int, to_correct: int, rows: int) -> Unpaired:
    """The difference of two totals, as if each had been counted on different rows.

    If both counted the same rows and tend to be right on the same ones, their difference varies less than
    this assumes: the interval is too wide and p too large.

    Args:
        from_correct: Rows that the first had right.
        to_correct: Rows that the second had right.
        rows: How many rows each answered.
    """
    from statsmodels.stats.proportion import confint_proportions_2indep

    low, high = confint_proportions_2indep(to_correct, rows, from_correct, rows, method="newcomb")
    p = two_proportion_p(from_correct, to_correct, rows)
    return Unpaired((to_correct - from_correct) / rows, float(low), float(high), p)


def two_proportion_p(from_correct: int, to_correct: int, rows: int) -> float:
    """The two-sided p of the z test of two proportions, each of as many rows, with the pooled variance."""
    if from_correct == to_correct:  # also where nothing or everything is right, and the variance is 0
        return 1.0
    from statsmodels.stats.proportion import proportions_ztest

    return float(proportions_ztest([to_correct, from_correct], [rows, rows])[1])
