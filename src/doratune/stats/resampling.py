"""How far a mean over seeds and rows may be from the truth: rows by bootstrap, seeds by Student's t.

A value of seed s on row r is taken as mean + seed[s] + row[r] + rest[s, r], the rows being the same for every
seed. The mean over S seeds and R rows then has the variance σ²(seed)/S + σ²(row)/R + σ²(rest)/(S·R).

The plain hierarchical bootstrap gets this wrong for the few seeds that a study can pay for. Resampling three
seeds gives two thirds of their variance and, with ten different outcomes, no tail; rows redrawn within each
seed forget that the seeds share them; rows drawn once for all seeds count the rest three times. On simulated
studies of three seeds its 95 % intervals held the truth in 69 to 100 % of cases. So here:

- Rows are resampled from their means over the seeds; as these take few values, one multinomial draw does it.
  The deviation is scaled to the rows' own part of its variance: the rest is in the seeds' means already.
- For the seeds, a t variate of S − 1 degrees of freedom times the standard error of their means is drawn. The
  sum is the solution of Behrens and Fisher for two unknown variances, known to err on the safe side.
- A spread is never less than that of the rows alone, which is right when seeds have no effect:
  two or three of them may agree by chance.
- Made-up rows that each side wins (Agresti & Coull 1998; Bonett & Price 2012) keep a spread above zero where
  hardly any row differs.

The same simulations give 94 to 100 %: near 95 where either part is large, above it where both are alike or
few rows differ. One seed has no spread of seeds: what is told then is about its rows only.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

RESAMPLES = 10_000
LEVEL = 0.95
_RANDOM_SEED = 20240209  # any: the same answers always give the same interval


@dataclass(frozen=True)
class Block:
    """Values of the same rows under every seed, and their weight in the mean of several such blocks."""

    values: np.ndarray  #: (seeds, rows), float
    weight: float = 1.0


@dataclass(frozen=True)
class Components:
    """Where the values of a block vary: the variances of the model above."""

    seed: float  #: between seeds, the same on every row; 0 where there is one seed
    row: float  #: between rows, the same for every seed
    rest: float  #: what is left; 0 where there is one seed, whose rows have it in ``row``


def with_made_up_rows(values: np.ndarray, made_up: Sequence[float]) -> np.ndarray:
    """``values`` (seeds, rows) as float with further rows that are the same for every seed."""
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
        blocks: Values whose rows differ from block to block while the seeds are the same. A run may have
            answered several blocks, so the seeds' spread is that of their means over all blocks.
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
    """Of no difference: twice the share of draws on the far side of zero, never less than 2/(draws + 1)."""
    tail = min(np.count_nonzero(draws <= 0), np.count_nonzero(draws >= 0))
    return min(1.0, 2 * (int(tail) + 1) / (len(draws) + 1))


def _row_deviations(values: np.ndarray, random: np.random.Generator) -> np.ndarray:
    """How far the mean is from its own when the rows are drawn again, (``RESAMPLES``,)."""
    means, counts = np.unique(values.mean(axis=0), return_counts=True)
    rows = values.shape[1]
    return random.multinomial(rows, counts / rows, size=RESAMPLES) @ means / rows - values.mean()


def _own_share(values: np.ndarray) -> float:
    """The share of the variance between the rows' means that is the rows' own and not the rest's."""
    found = components(values)
    whole = found.row + found.rest / values.shape[0]
    return found.row / whole if whole else 0.0


def _width(draws: np.ndarray) -> float:
    low, high = interval(draws)
    return high - low
