"""How many test rows or seeds it takes to detect a difference of a given size.

"Detect" means p < 0.05, before any correction over tasks, in four of five studies. The test is that of
``spread``. Its critical value follows Cochran's approximation, (t·v(seeds) + z·v(rows)) / (v(seeds) +
v(rows)) standard errors, but is at least that of the rows alone. The power is averaged over the estimates
that S seeds may give of their spread (χ² with S − 1 degrees of freedom).

A true difference d takes rows on which the arms differ: at least a share d of them, with a variance of
d − d². What the arms differ on already comes on top. So the variance of a row is q + d − d², where q is the
mean square of the differences found, which is the share of discordant rows unless candidates tied.

A pilot of few seeds knows its variances badly. A range uses their 80 % bounds: χ² for the variance between
seeds, Poisson for the number of discordant rows. Its lower end also takes the difference found for a part of
d.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache

import numpy as np
from scipy import stats

from doratune.records.study import Needed
from doratune.stats.spread import LEVEL, Components, components

POINTS = (1.0, 2.0, 5.0)
POWER = 0.8
BOUNDS = (0.1, 0.9)  # probabilities of the bounds of a range
MOST_ROWS = 10**9
MOST_SEEDS = 10**6
_NORMAL = float(stats.norm.isf((1 - LEVEL) / 2))  # the critical value of the rows alone
_CHI_SQUARE = (np.arange(200) + 0.5) / 200  # probabilities at which the seeds' spread is evaluated


def needed(values: np.ndarray) -> list[Needed]:
    """How many rows, or how many seeds, it takes to detect each of ``POINTS``.

    Args:
        values: The paired differences of the study's rows, (seeds, rows), from -1 to 1. With one seed,
            nothing is known about other seeds, so the result is for that seed only.
    """
    return [_needed(points, values) for points in POINTS]


def expected(difference: float, values: np.ndarray) -> tuple[Components, Components, Components]:
    """The variances of a study with a true ``difference``: the estimate and the bounds of its range.

    Args:
        difference: The true difference, as a share.
        values: The paired differences of a study's rows, (seeds, rows).
    """
    found = components(values)
    (seeds, rows), discordant = values.shape, float((values**2).mean())
    count = discordant * rows
    least, most = (
        stats.chi2.ppf(share, 2 * (count + more)) / 2 / rows if count + more else 0.0
        for share, more in zip(BOUNDS, (0, 1), strict=True)
    )
    least = max(least - abs(float(values.mean())), 0.0)
    seed = [found.seed] * 3
    if seeds > 1:
        spread = float(values.mean(axis=1).var(ddof=1)) * (seeds - 1)
        low, high = (spread / stats.chi2.ppf(share, seeds - 1) for share in reversed(BOUNDS))
        seed[1:] = (max(bound - found.rest / rows, 0.0) for bound in (low, high))
    observed = found.row + found.rest
    own = found.row / observed if observed else 1.0
    whole = [one + difference - difference**2 for one in (discordant, least, most)]
    estimate, lower, upper = (
        Components(by_seed, own * by_row, (1 - own) * by_row)
        for by_seed, by_row in zip(seed, whole, strict=True)
    )
    return estimate, lower, upper


def power(difference: float, found: Components, seeds: int, rows: int) -> float:
    """The share of studies of this size that would detect a true ``difference`` (a share, not points)."""
    by_rows = found.row / rows
    by_seeds = found.seed / seeds + found.rest / (seeds * rows)
    if seeds == 1 or not by_seeds:
        error = np.sqrt(by_rows + by_seeds)
        return 1.0 if error == 0 else float(stats.norm.sf(_NORMAL - difference / error))
    student, shares = _student(seeds - 1)
    estimated = by_seeds * shares
    critical = (student * estimated + _NORMAL * by_rows) / np.sqrt(estimated + by_rows)
    critical = np.maximum(critical, _NORMAL * np.sqrt(by_rows + found.rest / (seeds * rows)))
    return float(stats.norm.sf((critical - difference) / np.sqrt(by_seeds + by_rows)).mean())


def _needed(points: float, values: np.ndarray) -> Needed:
    seeds, rows = values.shape
    cases = expected(points / 100, values)
    by_rows, low_rows, high_rows = (
        _smallest(lambda n, case=case: power(points / 100, case, seeds, n), 2, MOST_ROWS) for case in cases
    )
    if seeds == 1:
        return Needed(points=points, rows=by_rows, seeds=None, rows_range=(low_rows, high_rows))
    by_seeds, low_seeds, high_seeds = (
        _smallest(lambda n, case=case: power(points / 100, case, n, rows), 2, MOST_SEEDS) for case in cases
    )
    return Needed(
        points=points,
        rows=by_rows,
        seeds=by_seeds,
        rows_range=(low_rows, high_rows),
        seeds_range=(low_seeds, high_seeds),
    )


@lru_cache(maxsize=256)
def _student(freedom: int) -> tuple[float, np.ndarray]:
    """The critical value of t, and what the estimated variance may be relative to the true one."""
    shares = stats.chi2.ppf(_CHI_SQUARE, freedom) / freedom
    return float(stats.t.isf((1 - LEVEL) / 2, freedom)), shares


def _smallest(share: Callable[[int], float], least: int, most: int) -> int | None:
    """The smallest number with enough power; None if not even ``most`` has it."""
    if share(most) < POWER:
        return None
    while least < most:
        middle = (least + most) // 2
        if share(middle) >= POWER:
            most = middle
        else:
            least = middle + 1
    return least
