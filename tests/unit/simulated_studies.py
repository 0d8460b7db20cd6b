"""Answers of made-up studies whose true accuracies are known.

A row is right when mean + row + row-by-method + seed-by-method + rest > 0, all parts normal: the accuracy
over all seeds and rows is Φ(mean / √(sum of variances)), that of one seed Φ((mean + seed) / √(the others')).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.stats import norm


@dataclass(frozen=True)
class World:
    """Standard deviations of the parts, and the mean of each of two methods."""

    seed: float
    row: float = 1.0
    row_by_method: float = 0.3
    rest: float = 0.6
    means: tuple[float, float] = (0.6, 0.75)

    def studies(
        self, count: int, seeds: int, rows: int, random: np.random.Generator
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """(count, 2, seeds, rows) answers, (2,) accuracies, (count, 2, seeds) accuracies of each seed."""
        means = np.array(self.means)
        row = random.normal(size=(count, 1, 1, rows)) * self.row
        by_method = random.normal(size=(count, 2, 1, rows)) * self.row_by_method
        by_seed = random.normal(size=(count, 2, seeds, 1)) * self.seed + means[:, None, None]
        rest = random.standard_normal(size=(count, 2, seeds, rows), dtype=np.float32) * self.rest
        within = np.sqrt(self.row**2 + self.row_by_method**2 + self.rest**2)
        whole = np.sqrt(within**2 + self.seed**2)
        answers = row + by_method + by_seed + rest > 0
        return answers, norm.cdf(means / whole), norm.cdf(by_seed[..., 0] / within)


def net_rows(random: np.random.Generator, seeds: int, rows: int, differing: float) -> np.ndarray:
    """Paired differences, (seeds, rows), of arms that differ on a share of the rows, either way alike."""
    drawn = random.random((seeds, rows), dtype=np.float32)
    return (drawn < differing / 2).astype(float) - (drawn > 1 - differing / 2)
