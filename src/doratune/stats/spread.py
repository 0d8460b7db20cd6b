"""How far a mean over seeds and rows may be from the truth: rows by bootstrap, seeds by Student's t.

The value of seed s on row r is modelled as mean + seed[s] + row[r] + rest[s, r], with the same rows for every
seed. The mean over S seeds and R rows then has the variance σ²(seed)/S + σ²(row)/R + σ²(rest)/(S·R).

The plain hierarchical bootstrap gets this wrong for the few seeds that a study can afford. Resampling three
seeds gives two thirds of their variance and, with ten different outcomes, no tails. Redrawing rows within
each seed ignores that the seeds share them; drawing rows once for all seeds counts the rest three times. In
simulated studies of three seeds its 95 % intervals contained the truth in 69 to 100 % of cases. So here:

- Rows have the distribution of a bootstrap of their means over the seeds. It is not drawn: the cumulants of a
  bootstrap mean are known, and Cornish and Fisher's expansion gives its quantiles. The deviation is scaled to
  the rows' own part of its variance, since the seeds' means contain the rest already.
- The seeds' part is a Student's t with S − 1 degrees of freedom, times the standard error of their means. The
  sum of both is the solution of Behrens and Fisher for two unknown variances.
- The spread is never less than that of the rows alone, which is right when seeds have no effect: two or three
  of them may agree by chance.
- Made-up rows that each side wins (Agresti & Coull 1998; Bonett & Price 2012) keep the spread above zero
  where hardly any row differs. Only rows that count from 0 to 1 need them.

For a mean over several cells the seeds' variances of separately trained cells add up, with the degrees of
freedom of Satterthwaite. Cells that one training answered share its seeds: their means are added first.

Nothing is random, so the same answers always give the same interval. With one seed there is no spread between
seeds, and the interval covers the rows only.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from scipy import optimize, special, stats

LEVEL = 0.95
_NORMAL = np.linspace(-6, 6, 301)  # points of a standard normal, at which the rows' quantiles are computed
_HALVES = np.array([1.0, 1.5, 2.0])  # powers of a variance's factor that scale the second to fourth cumulant
_WEIGHTS = stats.norm.pdf(_NORMAL) / stats.norm.pdf(_NORMAL).sum()


@dataclass(frozen=True)
class Block:
    """Values of the same rows under every seed.

    Attributes:
        values: (seeds, rows), float.
        weight: Their weight in the mean of several blocks.
        rows: Identifies the rows. Blocks with the same ones are resampled together.
        runs: Identifies the run, or pair of runs, behind each seed. Blocks that share one share its seeds.
            None: they were trained for this block alone.
    """

    values: np.ndarray
    weight: float = 1.0
    rows: Hashable = None
    runs: tuple[Hashable, ...] | None = None


@dataclass(frozen=True)
class Components:
    """The variances of a block's values in the model above."""

    seed: float  #: between seeds, the same on every row; 0 where there is one seed
    row: float  #: between rows, the same for every seed
    rest: float  #: the remainder; with one seed 0, as ``row`` includes it


@dataclass(frozen=True)
class Spread:
    """The distribution of where a mean may be.

    Attributes:
        mean: The mean that was found.
        by_rows: How far the rows may move it, at each point of ``_NORMAL``, ascending.
        error: The standard error of the seeds' part; 0: the rows only.
        freedom: Its degrees of freedom.
    """

    mean: float
    by_rows: np.ndarray
    error: float = 0.0
    freedom: float = np.inf

    @cached_property
    def interval(self) -> tuple[float, float]:
        """The middle 95 %."""
        low, high = (self._quantile(share) for share in ((1 - LEVEL) / 2, (1 + LEVEL) / 2))
        return low, high

    @cached_property
    def p_value(self) -> float:
        """The two-sided p-value of no difference: twice the share beyond zero."""
        if not self.mean and not self.by_rows.any() and not self.error:
            return 1.0
        below = self._below(0.0)
        return min(1.0, 2 * min(below, 1 - below))

    @property
    def width(self) -> float:
        """The length of the interval."""
        return self.interval[1] - self.interval[0]

    def _below(self, value: float) -> float:
        """The share below a value."""
        away = value - self.mean
        if not self.error:
            return float(special.ndtr(np.interp(away, self.by_rows, _NORMAL)))
        return float(_WEIGHTS @ special.stdtr(self.freedom, (away - self.by_rows) / self.error))

    def _quantile(self, share: float) -> float:
        if not self.error:
            return self.mean + float(np.interp(special.ndtri(share), _NORMAL, self.by_rows))
        student = self.error * float(special.stdtrit(self.freedom, share))
        least, most = (self.mean + float(self.by_rows[end]) + student for end in (0, -1))
        if least == most:
            return least
        tolerance = 1e-5 * (most - least)
        found = optimize.root_scalar(
            lambda value: self._below(value) - share, bracket=(least, most), xtol=tolerance
        )
        return float(found.root)


def with_made_up_rows(values: np.ndarray, made_up: Sequence[float]) -> np.ndarray:
    """``values`` (seeds, rows) as float, with further rows that are the same for every seed."""
    columns = np.broadcast_to(np.asarray(made_up, dtype=float), (values.shape[0], len(made_up)))
    return np.concatenate([values.astype(float), columns], axis=1)


def components(values: np.ndarray) -> Components:
    """Estimates from the mean squares of a two-way layout; negative ones become 0.

    Args:
        values: (seeds, rows). A single row does not tell how rows vary, so all variance is the seeds'.
    """
    seeds, rows = values.shape
    if rows == 1:
        return Components(seed=float(values.var(ddof=1)) if seeds > 1 else 0.0, row=0.0, rest=0.0)
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


def spread_of(blocks: Sequence[Block]) -> Spread:
    """Where the weighted mean of all blocks may be.

    Args:
        blocks: All with one seed, or all with several. Their numbers of seeds may differ if no run is behind
            two of them.
    """
    mean = float(sum(block.weight * block.values.mean() for block in blocks))
    merged = _merged(blocks)
    groups: dict[Hashable, list[np.ndarray]] = {}
    for (rows, _), values in merged.items():
        groups.setdefault(rows, []).append(values)
    cumulants = np.array([_cumulants(group) for group in groups.values()])
    rows_only = Spread(mean, _quantiles(cumulants.sum(axis=0)))
    error, freedom = _seed_error([(runs, values) for (_, runs), values in merged.items()])
    if not error:
        return rows_only
    shares = np.array([[_own_share(group)] for group in groups.values()])
    both = Spread(mean, _quantiles((shares**_HALVES * cumulants).sum(axis=0)), error, freedom)
    return both if both.width >= rows_only.width else rows_only


def _merged(blocks: Sequence[Block]) -> dict[tuple[Hashable, tuple[Hashable, ...]], np.ndarray]:
    """The weighted values by rows and runs; those that share both are added, seed by seed."""
    merged: dict[tuple[Hashable, tuple[Hashable, ...]], np.ndarray] = {}
    for place, block in enumerate(blocks):
        runs = block.runs
        if runs is None:
            runs = tuple((place, seed) for seed in range(len(block.values)))
        rows = (place,) if block.rows is None else block.rows
        merged[rows, runs] = merged.get((rows, runs), 0.0) + block.weight * block.values
    return merged


def _seed_error(cells: Sequence[tuple[tuple[Hashable, ...], np.ndarray]]) -> tuple[float, float]:
    """The standard error of the seeds' part of a sum, and its degrees of freedom (Satterthwaite 1946)."""
    moved: dict[Hashable, float] = {}  # by run, how far it moves the sum
    trainings: list[tuple[set[Hashable], float]] = []  # the runs of cells that share some, their freedom
    for runs, values in cells:
        means = values.mean(axis=1)
        seeds = len(means)
        if seeds == 1:
            return 0.0, np.inf
        for run, away in zip(runs, (means - means.mean()) / np.sqrt(seeds * (seeds - 1)), strict=True):
            moved[run] = moved.get(run, 0.0) + float(away)
        sharing = [one for one in trainings if one[0] & set(runs)]
        trainings = [one for one in trainings if one not in sharing]
        least = min([seeds - 1.0, *(freedom for _, freedom in sharing)])
        trainings.append((set(runs).union(*(one[0] for one in sharing)), least))
    variances = np.array([sum(moved[run] ** 2 for run in runs) for runs, _ in trainings])
    if not variances.sum():
        return 0.0, np.inf
    freedom = variances.sum() ** 2 / (variances**2 / [one[1] for one in trainings]).sum()
    return float(np.sqrt(variances.sum())), float(freedom)


def _cumulants(group: Sequence[np.ndarray]) -> np.ndarray:
    """The second to fourth cumulant of the bootstrap's mean of the same rows, (3,)."""
    means = np.sum([values.mean(axis=0) for values in group], axis=0)
    rows = len(means)
    away = means - means.mean()
    square = away * away
    second, third, fourth = (float(one.mean()) for one in (square, square * away, square * square))
    return np.array([second / rows, third / rows**2, (fourth - 3 * second**2) / rows**3])


def _quantiles(cumulants: np.ndarray) -> np.ndarray:
    """The values at ``_NORMAL`` of a distribution with mean 0 and these cumulants (Cornish & Fisher 1938)."""
    second, third, fourth = cumulants.tolist()
    if second <= 0:
        return np.zeros_like(_NORMAL)
    z, skew, excess = _NORMAL, third / second**1.5, fourth / second**2
    found = z + skew * (z**2 - 1) / 6 + excess * (z**3 - 3 * z) / 24 - skew**2 * (2 * z**3 - 5 * z) / 36
    middle = len(z) // 2  # far out the expansion may turn back
    upper = np.maximum.accumulate(found[middle:])
    lower = np.minimum.accumulate(found[middle::-1])[::-1]
    return np.sqrt(second) * np.concatenate([lower[:-1], upper])


def _own_share(group: Sequence[np.ndarray]) -> float:
    """The part of the variance between the rows' means that is the rows' own and not the rest."""
    if group[0].shape[1] == 1:
        return 0.0
    whole = float(np.sum([values.mean(axis=0) for values in group], axis=0).var(ddof=1))
    rest = sum(components(values).rest / len(values) for values in group)
    return max(0.0, 1 - rest / whole) if whole else 0.0
