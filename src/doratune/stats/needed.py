"""How many test rows or seeds it takes to detect a difference of a given size.

"Detect" means p < 0.05, before any correction over tasks, in four of five studies. The test is that of
``resampling``. Its critical value follows Cochran's approximation, (t·v(seeds) + z·v(rows)) / (v(seeds) +
v(rows)) standard errors, but is at least that of the rows alone. The power is averaged over the estimates
that S seeds may give of their spread (χ² with S − 1 degrees of freedom).
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from scipy import stats

from doratune.records.study import Needed
from doratune.stats.resampling import LEVEL, Components

POINTS = (1.0, 2.0, 5.0)
POWER = 0.8
MOST_ROWS = 10**9
MOST_SEEDS = 10**6
_CHI_SQUARE = (np.arange(200) + 0.5) / 200  # probabilities at which the seeds' spread is evaluated


def needed(found: Components, seeds: int, rows: int) -> list[Needed]:
    """How many rows, or how many seeds, it takes to detect each of ``POINTS``.

    Args:
        found: How the paired difference varies, as a share (1 point is 0.01).
        seeds: How many seeds the study has. With one, nothing is known about other seeds, so the result is
            for that seed only.
        rows: How many test rows the study has.
    """
    return [
        Needed(
            points=points,
            rows=_smallest(lambda n, p=points: power(p / 100, found, seeds, n), 2, MOST_ROWS),
            seeds=None
            if seeds == 1
            else _smallest(lambda n, p=points: power(p / 100, found, n, rows), 2, MOST_SEEDS),
        )
        for points in POINTS
    ]


def power(difference: float, found: Components, seeds: int, rows: int) -> float:
    """The share of studies of this size that would detect a true ``difference`` (a share, not points)."""
    by_rows = found.row / rows
    by_seeds = found.seed / seeds + found.rest / (seeds * rows)
    normal = float(stats.norm.isf((1 - LEVEL) / 2))
    if seeds == 1 or not by_seeds:
        error = np.sqrt(by_rows + by_seeds)
        return 1.0 if error == 0 else float(stats.norm.sf(normal - difference / error))
    estimated = by_seeds * stats.chi2.ppf(_CHI_SQUARE, seeds - 1) / (seeds - 1)
    student = float(stats.t.isf((1 - LEVEL) / 2, seeds - 1))
    critical = (student * estimated + normal * by_rows) / np.sqrt(estimated + by_rows)
    critical = np.maximum(critical, normal * np.sqrt(by_rows + found.rest / (seeds * rows)))
    return float(stats.norm.sf((critical - difference) / np.sqrt(by_seeds + by_rows)).mean())


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
