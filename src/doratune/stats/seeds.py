"""The accuracy of two methods with several seeds on the same rows: means, paired differences and verdicts.

A row counts 1 or 0, or a fraction where candidates tied (``records.answers``). ``measures`` has the means and
differences of measures with any number for each row; verdicts are about accuracy only.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction

import numpy as np
from scipy.stats import binomtest, permutation_test

from doratune.errors import InputError
from doratune.records.study import (
    IN_WORDS,
    NO_VERDICT,
    Needed,
    Outcome,
    SeedDifference,
    StudyDifference,
    arm_name,
)
from doratune.stats.accuracy import accuracy_with_interval
from doratune.stats.holm import holm
from doratune.stats.needed import needed
from doratune.stats.spread import Block, Spread, spread_of, with_made_up_rows
from doratune.wording import signed

ARM_ROWS = (1.0, 1.0, 0.0, 0.0)  # two correct, two wrong
PAIRED_ROWS = (1.0, -1.0)  # one that only the second arm has right, one that only the first has
ONE_SEED = "one seed only"
SIGNIFICANCE = 0.05
_MOST_TIED = 26  # candidates of a row; a difference's denominator is at most the product of two such numbers
_MOST_SUMS = 2**22  # possible sums up to which the exact distribution is computed
_FLIPS = 99_999  # drawn choices of signs where it is not
_DIGITS = 9  # decimals to which equal differences agree


@dataclass(frozen=True)
class PairedCell:
    """What two arms got on the rows of one cell.

    Attributes:
        rows: Identifies the test rows, for example by their hash; cells may share their rows.
        from_values: (seeds, rows), bool, or float from 0 to 1 with ties.
        to_values: The same for the second arm.
        runs: The pair of runs behind each seed. Cells that one training answered have the same ones, so their
            seeds vary together. None: trained for this cell alone.
    """

    rows: str
    from_values: np.ndarray
    to_values: np.ndarray
    runs: tuple[tuple[str, str], ...] | None = None


def arm_summary(values: np.ndarray) -> tuple[float, tuple[float, float]]:
    """Mean accuracy over seeds and rows with its 95 % interval, as shares.

    The interval of one seed is Wilson's, that of several that of ``spread``.

    Args:
        values: (seeds, rows), bool, or float from 0 to 1 where candidates may tie.

    Raises:
        InputError: There are no seeds or no rows, or the shape, dtype or values do not fit.
    """
    _check(values)
    if len(values) == 1:
        only = accuracy_with_interval(_sum(values), values.size)
        return only.value, (only.low, only.high)
    low, high = spread_of([Block(with_made_up_rows(values, ARM_ROWS))]).interval
    mean = float(values.mean())
    return mean, (max(0.0, min(low, mean)), min(1.0, max(high, mean)))


def difference(
    from_arm: str,
    from_values: np.ndarray,
    to_arm: str,
    to_values: np.ndarray,
    seeds: Sequence[int | None],
) -> StudyDifference:
    """``to_arm`` minus ``from_arm``, paired by seed and row.

    With one seed, p is that of ``sign_flip_p``, which is McNemar's exact test unless candidates tied; with
    several, it comes from the same distribution as the interval. It is not corrected yet: ``adjusted`` does
    that for a whole family.

    Args:
        from_arm: Name of the first arm.
        from_values: (seeds, rows), bool, or float from 0 to 1 where candidates may tie.
        to_arm: Name of the second arm.
        to_values: The same for the second arm, with the same seeds and rows in the same order.
        seeds: The seeds, in the order of the first axis; None where the two arms had different ones.

    Raises:
        InputError: The shapes do not fit together or are empty, or a dtype or value does not fit.
    """
    _check(from_values, to_values)
    if len(seeds) != len(from_values):
        raise InputError(
            "the numbers of seeds and runs differ", got=f"{len(seeds)} seeds, {len(from_values)} runs"
        )
    spread = spread_of([Block(_differences(from_values, to_values))])
    by_seed = [
        _seed_difference(seed, before, after)
        for seed, before, after in zip(seeds, from_values, to_values, strict=True)
    ]
    one_seed = len(by_seed) == 1
    return _uncorrected(
        from_arm,
        to_arm,
        _gain(from_values, to_values),
        spread,
        p_value=by_seed[0].p_value if one_seed else spread.p_value,
        one_seed=one_seed,
        seeds=by_seed,
        needed=needed(to_values.astype(float) - from_values),
    )


def mcnemar_p(only_from: int, only_to: int) -> float:
    """Two-sided p-value of McNemar's exact test.

    Only rows on which two arms disagree tell which is better. If the arms are equally good, such a row is as
    likely to favour one as the other: the split is binomial(n, 1/2).

    Args:
        only_from: Rows that only the first arm had right.
        only_to: Rows that only the second arm had right.

    Returns:
        The p-value; 1.0 when the arms never disagree.
    """
    discordant = only_from + only_to
    return float(binomtest(only_from, discordant).pvalue) if discordant else 1.0


def sign_flip_p(differences: np.ndarray) -> float:
    """Two-sided p-value of the exact sign-flip test: for equal arms, each row's sign is a coin flip.

    p is the share of all choices of signs whose sum is at least as far from zero as the observed one. Where
    every row counts 1 or 0, the sum is binomial, and this is McNemar's exact test. Rows that count a
    fraction, as ties do, enter with the size of their difference. Where those sizes have no small common
    unit, the share is of 99,999 choices of signs drawn with a fixed seed.

    Args:
        differences: What each row counts for the second arm minus what it counts for the first, from -1 to 1.

    Returns:
        The p-value; 1.0 when the arms never differ.
    """
    sizes, counts = np.unique(np.abs(differences).round(_DIGITS), return_counts=True)
    counts, sizes = counts[sizes > 0], sizes[sizes > 0]
    if all(size == 1 for size in sizes):
        return mcnemar_p(int((differences < 0).sum()), int((differences > 0).sum()))
    # In whole units. The sum's distribution follows from its characteristic function, a product of cosines.
    unit = math.lcm(*(Fraction(size).limit_denominator(_MOST_TIED**2).denominator for size in sizes.tolist()))
    units = np.rint(sizes * unit)
    largest = int((units * counts).sum())
    points = 2 * largest + 1
    if points > _MOST_SUMS:
        discordant = differences[np.abs(differences).round(_DIGITS) > 0]
        drawn = permutation_test(
            (discordant,), np.sum, permutation_type="samples", n_resamples=_FLIPS, batch=1000, rng=0
        )
        return float(drawn.pvalue)
    angles = 2 * np.pi * np.arange(points) / points
    characteristic = np.prod(
        [np.cos(one * angles) ** count for one, count in zip(units, counts, strict=True)], axis=0
    )
    shares = np.fft.ifft(characteristic).real
    sums = (np.arange(points) + largest) % points - largest
    found = abs(round(unit * math.fsum(differences.tolist())))
    return float(np.clip(shares[np.abs(sums) >= found].sum(), 0, 1))


def pooled(from_arm: str, to_arm: str, cells: Sequence[PairedCell]) -> StudyDifference:
    """The mean of the cells' differences, with equal weights.

    Cells that share their test rows are resampled together. Seeds vary together in cells that one training
    answered; those of separate trainings are independent, and cells may then have different numbers of them.

    Args:
        from_arm: Name of the first arm.
        to_arm: Name of the second arm.
        cells: What both arms got in each cell, all with one seed or all with several.

    Raises:
        InputError: There are no cells, only some have one seed, or their answers do not fit together.
    """
    if not cells:
        raise InputError("there are no cells to pool", expected="one or more")
    widths: dict[str, int] = {}
    for cell in cells:
        _check(cell.from_values, cell.to_values)
        if widths.setdefault(cell.rows, cell.to_values.shape[1]) != cell.to_values.shape[1]:
            raise InputError("cells with the same test rows have different numbers of rows", where=cell.rows)
    one_seed = {len(cell.from_values) == 1 for cell in cells}
    if len(one_seed) > 1:
        counts = sorted({len(cell.from_values) for cell in cells})
        raise InputError("some cells have one seed and others several, which cannot be pooled", got=counts)
    spread = spread_of(
        [
            Block(_differences(cell.from_values, cell.to_values), 1 / len(cells), cell.rows, cell.runs)
            for cell in cells
        ]
    )
    points = float(np.mean([_gain(cell.from_values, cell.to_values) for cell in cells]))
    return _uncorrected(from_arm, to_arm, points, spread, p_value=spread.p_value, one_seed=one_seed == {True})


def adjusted(family: Sequence[StudyDifference]) -> list[StudyDifference]:
    """The same differences with p corrected over all of them (Holm), and the outcome and verdict that follow.

    Args:
        family: The differences of one question, such as DoRA minus LoRA on every task of one model and rank.
            Those without a verdict stay as they are and do not count.
    """
    telling = [one for one in family if one.outcome != NO_VERDICT]
    if not telling:
        return list(family)
    corrected = iter(holm([one.p_value for one in telling]))
    return [
        one
        if one.outcome == NO_VERDICT
        else _with_verdict(one, next(corrected), one_seed=len(one.seeds) == 1)
        for one in family
    ]


def without_verdict(found: StudyDifference, reason: str) -> StudyDifference:
    """``found`` with the reason why nothing follows from it, instead of an outcome."""
    return found.model_copy(
        update={"p_adjusted": found.p_value, "outcome": NO_VERDICT, "verdict": f"no verdict: {reason}"}
    )


def _uncorrected(
    from_arm: str,
    to_arm: str,
    points: float,
    spread: Spread,
    *,
    p_value: float,
    one_seed: bool,
    seeds: Sequence[SeedDifference] = (),
    needed: Sequence[Needed] = (),
) -> StudyDifference:
    """A difference whose p is not corrected yet."""
    low, high = spread.interval
    found = StudyDifference(
        from_arm=from_arm,
        to_arm=to_arm,
        points=points,
        interval=(max(100 * low, -100.0), min(100 * high, 100.0)),  # with two seeds t's ends are far apart
        p_value=p_value,
        p_adjusted=1.0,
        outcome="undecided",
        verdict="",
        seeds=list(seeds),
        needed=list(needed),
    )
    return _with_verdict(found, p_value, one_seed=one_seed)


def _with_verdict(found: StudyDifference, p_adjusted: float, *, one_seed: bool) -> StudyDifference:
    """``found`` with the outcome and the verdict that follow from its corrected p."""
    p = min(1.0, p_adjusted)
    outcome: Outcome = "undecided"
    if p < SIGNIFICANCE and found.points:
        outcome = "better" if found.points > 0 else "worse"
    if outcome == "undecided":
        low, high = (signed(bound) for bound in found.interval)
        words = f"the data are compatible with differences in accuracy from {low} to {high} points"
        if found.p_value < SIGNIFICANCE:
            words += ", and not significant after correction for the number of tasks"
    else:
        words = f"{arm_name(found.to_arm)} is {IN_WORDS[outcome]} than {arm_name(found.from_arm)}"
    verdict = f"{words}; {ONE_SEED}" if one_seed else words
    return found.model_copy(update={"p_adjusted": p, "outcome": outcome, "verdict": verdict})


def _differences(before: np.ndarray, after: np.ndarray) -> np.ndarray:
    """The paired differences, (seeds, rows), with made-up rows."""
    return with_made_up_rows(after.astype(float) - before, PAIRED_ROWS)


def _seed_difference(seed: int | None, before: np.ndarray, after: np.ndarray) -> SeedDifference:
    differences = after.astype(float) - before
    return SeedDifference(
        seed=seed,
        points=_gain(before, after),
        only_from=int((differences < 0).sum()),
        only_to=int((differences > 0).sum()),
        p_value=min(1.0, sign_flip_p(differences)),
    )


def _gain(before: np.ndarray, after: np.ndarray) -> float:
    """The second arm's lead in points, from exact sums, so that every mean rounds the same way."""
    return 100 * (_sum(after) - _sum(before)) / before.size


def _sum(values: np.ndarray) -> float:
    return math.fsum(values.ravel().tolist())


def _check(*values: np.ndarray) -> None:
    """Raise InputError unless all are tables of values of one shape."""
    for one in values:
        share = one.dtype == np.float64 and bool(((one >= 0) & (one <= 1)).all())
        if one.ndim != 2 or not one.size or not (share or one.dtype == np.bool_):
            raise InputError(
                "no accuracy can be computed",
                got=f"values of shape {one.shape}, {one.dtype}",
                expected="a bool, or a number from 0 to 1, for each of one or more seeds and rows",
            )
    if len({one.shape for one in values}) > 1:
        raise InputError(
            "the arms did not answer the same rows with the same seeds",
            got=" and ".join(str(one.shape) for one in values),
        )
