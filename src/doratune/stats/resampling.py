"""How far a mean over seeds and rows may be from the truth: rows by bootstrap, seeds by Student's t.

The value of seed s on row r is modelled as mean + seed[s] + row[r] + rest[s, r], with the same rows for every
seed. The mean over S seeds and R rows then has the variance σ²(seed)/S + σ²(row)/R + σ²(rest)/(S·R).

The plain hierarchical bootstrap gets this wrong for the few seeds that a study can afford. Resampling three
seeds gives two thirds of their variance and, with ten different outcomes, no tails. Redrawing rows within
each seed ignores that the seeds share them; drawing rows once for all seeds counts the rest three times. In
simulated studies of three seeds its 95 % intervals contained the truth in 69 to 100 % of cases. So here:

- Rows are resampled from their means over the seeds. These take few values, so one multinomial draw is
  enough. The deviation is scaled to the rows' own part of its variance, since the seeds' means contain the
  rest already.
- For the seeds, a t variate with S − 1 degrees of freedom is drawn, times the standard error of their means.
  The sum is the solution of Behrens and Fisher for two unknown variances, known to err on the safe side.
- The spread is never less than that of the rows alone, which is right when seeds have no effect: two or three
  of them may agree by chance.
- Made-up rows that each side wins (Agresti & Coull 1998; Bonett & Price 2012) keep the spread above zero
  where hardly any row differs.

In the same simulations these intervals contain the truth in 94 to 100 % of cases: near 95 where one part
dominates, more where both are similar or few rows differ. With one seed there is no spread between seeds, and
the interval covers the rows only.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

RESAMPLES = 10_000
LEVEL = 0.95
_RANDOM_SEED = 20240209  # arbitrary but fixed: the same answers always give the same interval


@dataclass(frozen=True)
class Block:
    """Values of the same rows under every seed, and their weight in the mean of several such blocks."""

    values: np.ndarray  #: (seeds, rows), float
    weight: float = 1.0


@dataclass(frozen=True)
class Components:
    """The variances of a block's values in the model above."""

    seed: float  #: between seeds, the same on every row; 0 where there is one seed
    row: float  #: between rows, the same for every seed
    rest: float  #: the remainder; with one seed 0, as ``row`` includes it


def with_made_up_rows(values: np.ndarray, made_up: Sequence[float]) -> np.ndarray:
    """``values`` (seeds, rows) as float, with further rows that are the same for every seed."""
    columns = np.broadcast_to(np.asarray(made_up, dtype=float), (values.shape[0], len(made_up)))
    return np.concatenate([values.astype(float), columns], axis=1)


def components(values: np.ndarray) -> Components:
    """Estimates from the mean squares of a two-way layout; negative ones become 0.

    Args:
        values: (seeds, rows), at least two rows.
    """
    seeds, rows = values.shape
    row_means = values.mean(axis=0)
    between_rows = float(row_means.var(ddof=1))
    if seeds == 1:
        return Components(seed=0.0, row=between_rows, rest=0.0)
    seed_means = values.mean(axis=1)
    between_seeds = float(seed_means.var(ddof=1))
    residuals = values - row_means - seed_means[:, None] + values.mean()
    rest = float((residuals**2).sum()) / ((seeds - 1) * (rows - 1))
    return Components(
        seed=max(between_seeds - rest / rows, 0.0),
        row=max(between_rows - rest / seeds, 0.0),
        rest=rest,
    )


def resampled_means(blocks: Sequence[Block]) -> np.ndarray:
    """Draws of where the weighted mean of all blocks may be, (``RESAMPLES``,).

    Args:
        blocks: Each has other rows and the same seeds. A run may have answered several blocks, so the seeds'
            spread is that of their means over all blocks.
    """
    random = np.random.default_rng(_RANDOM_SEED)
    seed_means = np.sum([block.weight * block.values.mean(axis=1) for block in blocks], axis=0)
    seeds, mean = len(seed_means), float(seed_means.mean())
    by_rows = [block.weight * _row_deviations(block.values, random) for block in blocks]
    rows_only = mean + np.sum(by_rows, axis=0)
    if seeds == 1:
        return rows_only
    own = [np.sqrt(_own_share(block.values)) for block in blocks]
    error = seed_means.std(ddof=1) / np.sqrt(seeds)
    drawn = mean + np.dot(own, by_rows) + error * random.standard_t(seeds - 1, RESAMPLES)
    return drawn if _width(drawn) >= _width(rows_only) else rows_only


def interval(draws: np.ndarray) -> tuple[float, float]:
    """The middle 95 % of the draws."""
    low, high = np.quantile(draws, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return float(low), float(high)


def two_sided_p(draws: np.ndarray) -> float:
    """The p-value of no difference: twice the share of draws beyond zero, at least 2/(draws + 1)."""
    tail = min(np.count_nonzero(draws <= 0), np.count_nonzero(draws >= 0))
    return min(1.0, 2 * (int(tail) + 1) / (len(draws) + 1))


def _row_deviations(values: np.ndarray, random: np.random.Generator) -> np.ndarray:
    """How far the mean moves when the rows are resampled, (``RESAMPLES``,)."""
    means, counts = np.unique(values.mean(axis=0), return_counts=True)
    rows = values.shape[1]
    return random.multinomial(rows, counts / rows, size=RESAMPLES) @ means / rows - values.mean()


def _own_share(values: np.ndarray) -> float:
    """The part of the variance between the rows' means that is the rows' own and not the rest."""
    found = components(values)
    whole = found.row + found.rest / values.shape[0]
    return found.row / whole if whole else 0.0


def _width(draws: np.ndarray) -> float:
    low, high = interval(draws)
    return high - low
