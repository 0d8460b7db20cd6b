"""Differences of two totals: published intervals, exact error rates, and what the test must not do."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import binom, norm

from doratune.stats.proportions import two_proportion_p, unpaired_difference


@pytest.mark.parametrize(
    ("first", "second", "rows"), [(631, 619, 1319), (631, 694, 1319), (631, 0, 1319), (3, 9, 40)]
)
def test_the_figures_are_those_of_the_formulas(first: int, second: int, rows: int) -> None:
    """z from the pooled variance; Newcombe's interval from the two of Wilson (Newcombe 1998, method 10)."""
    p, q, both = first / rows, second / rows, (first + second) / (2 * rows)
    found = unpaired_difference(first, second, rows)
    z = (q - p) / np.sqrt(2 * both * (1 - both) / rows)
    assert found.p_value == pytest.approx(2 * norm.sf(abs(z)), rel=1e-9)
    k = norm.ppf(0.975)

    def wilson(share: float) -> tuple[float, float]:
        half = k * np.sqrt(share * (1 - share) / rows + k**2 / (4 * rows**2))
        return tuple((share + k**2 / (2 * rows) + side * half) / (1 + k**2 / rows) for side in (-1, 1))

    (a, b), (c, d) = wilson(p), wilson(q)
    assert found.value == pytest.approx(q - p)
    assert found.low == pytest.approx(q - p - np.hypot(q - c, b - p))
    assert found.high == pytest.approx(q - p + np.hypot(d - q, p - a))


def test_equal_totals_do_not_differ() -> None:
    for correct in (0, 7, 40):
        found = unpaired_difference(correct, correct, 40)
        assert (found.value, found.p_value) == (0, 1)
        assert found.low < 0 < found.high


def test_the_rate_of_false_differences_is_what_it_says() -> None:
    """Exact: the chance that two binomials of the same share give p < 0.05, on 300 rows."""
    rows = 300
    counts = np.arange(rows + 1)
    both = (counts[:, None] + counts[None, :]) / (2 * rows)
    with np.errstate(invalid="ignore", divide="ignore"):
        z = (counts[:, None] - counts[None, :]) / rows / np.sqrt(2 * both * (1 - both) / rows)
    told = np.nan_to_num(np.abs(z)) > norm.isf(0.025)
    for first, second in ((150, 174), (150, 175), (0, 3), (0, 4), (30, 44)):
        assert told[first, second] == (two_proportion_p(first, second, rows) < 0.05)
    for share in (0.01, 0.05, 0.2, 0.47, 0.5):
        weights = binom.pmf(counts, rows, share)
        assert weights @ told @ weights <= 0.055


def test_it_is_conservative_where_the_rows_are_the_same() -> None:
    """Two adapters that are right on the same rows more often than chance, and equally good."""
    random = np.random.default_rng(0)
    rows, studies = 400, 400
    hard = random.random((studies, rows)) < 0.5  # rows that neither has right
    answers = [np.where(hard, 0, random.random((studies, rows)) < 0.9).sum(1) for _ in range(2)]
    pairs = zip(*answers, strict=True)
    assert np.mean([two_proportion_p(int(a), int(b), rows) < 0.05 for a, b in pairs]) < 0.02
