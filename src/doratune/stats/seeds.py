"""Several seeds of two methods on the same rows: means, paired differences and verdicts.

A row counts 1 or 0, or a fraction where candidates tied (``records.answers``).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction

import numpy as np
from scipy.stats import binomtest, permutation_test

from doratune.errors import InputError
from doratune.records.study import Needed, Outcome, SeedDifference, StudyDifference, arm_name
from doratune.stats.accuracy import accuracy_with_interval
from doratune.stats.needed import needed
from doratune.stats.resampling import (
    Block,
    components,
    interval,
    resampled_means,
    two_sided_p,
    with_made_up_rows,
)

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
    """The answers of two arms in one cell."""

    rows: str  #: identifies the test rows, for example by their hash; cells may share their rows
    from_correct: np.ndarray  #: (seeds, rows), bool, or float from 0 to 1 with ties
    to_correct: np.ndarray  #: the same for the second arm


def arm_summary(correct: np.ndarray) -> tuple[float, tuple[float, float]]:
    """Mean accuracy over seeds and rows with its 95 % interval.

    The interval is Wilson's for one seed, otherwise that of ``resampling``.

    Args:
        correct: (seeds, rows), bool, or float from 0 to 1 where candidates may tie.

    Raises:
        InputError: There are no seeds or no rows, or the shape, dtype or values do not fit.
    """
    _check(correct)
    if len(correct) == 1:
        only = accuracy_with_interval(_sum(correct), correct.size)
        return only.value, (only.low, only.high)
    low, high = interval(resampled_means([Block(with_made_up_rows(correct, ARM_ROWS))]))
    mean = float(correct.mean())
    return mean, (max(0.0, min(low, mean)), min(1.0, max(high, mean)))


def difference(
    from_arm: str,
    from_correct: np.ndarray,
    to_arm: str,
    to_correct: np.ndarray,
    seeds: Sequence[int | None],
) -> StudyDifference:
    """``to_arm`` minus ``from_arm``, paired by seed and row.

    With one seed, p is that of ``sign_flip_p``, which is McNemar's exact test unless candidates tied; with
    several, it is the bootstrap's. It is not corrected yet: ``adjusted`` does that for a whole family.

    Args:
        from_arm: Name of the first arm.
        from_correct: (seeds, rows), bool, or float from 0 to 1 where candidates may tie.
        to_arm: Name of the second arm.
        to_correct: The same for the second arm, with the same seeds and rows in the same order.
        seeds: The seeds, in the order of the first axis; None where the two arms had different ones.

    Raises:
        InputError: The shapes do not fit together or are empty, or a dtype or value does not fit.
    """
    _check(from_correct, to_correct)
    if len(seeds) != len(from_correct):
        raise InputError(
            "the numbers of seeds and runs differ", got=f"{len(seeds)} seeds, {len(from_correct)} runs"
        )
    values = with_made_up_rows(to_correct.astype(float) - from_correct.astype(float), PAIRED_ROWS)
    draws = resampled_means([Block(values)])
    by_seed = [
        _seed_difference(seed, before, after)
        for seed, before, after in zip(seeds, from_correct, to_correct, strict=True)
    ]
    one_seed = len(by_seed) == 1
    return _uncorrected(
        from_arm,
        to_arm,
        _gain(from_correct, to_correct),
        draws,
        p_value=by_seed[0].p_value if one_seed else two_sided_p(draws),
        one_seed=one_seed,
        seeds=by_seed,
        needed=needed(components(values), *from_correct.shape),
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

    Cells that share their test rows are resampled together, and so are the seeds of all cells, since a run
    may have answered several of them.

    Args:
        from_arm: Name of the first arm.
        to_arm: Name of the second arm.
        cells: The answers of both arms, with the same number of seeds in every cell.

    Raises:
        InputError: There are no cells, their numbers of seeds differ, or their answers do not fit together.
    """
    if not cells:
        raise InputError("there are no cells to pool", expected="one or more")
    for cell in cells:
        _check(cell.from_correct, cell.to_correct)
    counts = {len(cell.from_correct) for cell in cells}
    if len(counts) > 1:
        raise InputError("the cells do not have the same number of seeds", got=str(sorted(counts)))
    groups: dict[str, list[np.ndarray]] = {}
    for cell in cells:
        groups.setdefault(cell.rows, []).append(cell.to_correct.astype(float) - cell.from_correct)
    for rows, group in groups.items():
        if len({one.shape for one in group}) > 1:
            raise InputError("cells with the same test rows have different numbers of rows", where=rows)
    blocks = [
        Block(with_made_up_rows(np.mean(group, axis=0), PAIRED_ROWS), len(group) / len(cells))
        for group in groups.values()
    ]
    draws = resampled_means(blocks)
    points = float(np.mean([_gain(cell.from_correct, cell.to_correct) for cell in cells]))
    return _uncorrected(from_arm, to_arm, points, draws, p_value=two_sided_p(draws), one_seed=counts == {1})


def adjusted(family: Sequence[StudyDifference]) -> list[StudyDifference]:
    """The same differences with p corrected over all of them (Holm), and the outcome and verdict that follow.

    Args:
        family: The differences of one question, such as DoRA minus LoRA on every task of one model and rank.
    """
    if not family:
        return []
    from statsmodels.stats.multitest import multipletests

    uncorrected = [one.p_value for one in family]
    corrected = np.asarray(multipletests(uncorrected, alpha=SIGNIFICANCE, method="holm")[1])
    # a pooled difference lists no seeds, but its verdict already says if there was only one
    return [
        _with_verdict(one, float(p), one_seed=one.verdict.endswith(ONE_SEED))
        for one, p in zip(family, corrected, strict=True)
    ]


def _uncorrected(
    from_arm: str,
    to_arm: str,
    points: float,
    draws: np.ndarray,
    *,
    p_value: float,
    one_seed: bool,
    seeds: Sequence[SeedDifference] = (),
    needed: Sequence[Needed] = (),
) -> StudyDifference:
    """A difference whose p is not corrected yet."""
    low, high = interval(draws)
    found = StudyDifference(
        from_arm=from_arm,
        to_arm=to_arm,
        points=points,
        interval=(100 * low, 100 * high),
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
    first, second = arm_name(found.from_arm), arm_name(found.to_arm)
    if outcome == "undecided":
        # rounded up, so that the possible difference is never understated
        most = math.ceil(10 * max(abs(bound) for bound in found.interval) - 1e-9) / 10
        words = f"no clear difference: at most {most:.1f} points either way"
        if found.p_value < SIGNIFICANCE:
            words += ", after correction for the number of tasks"
    else:
        words = f"{second} is {outcome} than {first}"
    verdict = f"{words}; {ONE_SEED}" if one_seed else words
    return found.model_copy(update={"p_adjusted": p, "outcome": outcome, "verdict": verdict})


def _seed_difference(seed: int | None, before: np.ndarray, after: np.ndarray) -> SeedDifference:
    differences = after.astype(float) - before.astype(float)
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


def _sum(correct: np.ndarray) -> float:
    return math.fsum(correct.ravel().tolist())


def _check(*answers: np.ndarray) -> None:
    """Raise InputError unless all are tables of answers of one shape."""
    for one in answers:
        parts = one.dtype == np.float64 and bool(((one >= 0) & (one <= 1)).all())
        if one.ndim != 2 or not one.size or not (parts or one.dtype == np.bool_):
            raise InputError(
                "no accuracy can be computed",
                got=f"answers of shape {one.shape}, {one.dtype}",
                expected="a bool, or a number from 0 to 1, for each of one or more seeds and rows",
            )
    if len({one.shape for one in answers}) > 1:
        raise InputError(
            "the arms did not answer the same rows with the same seeds",
            got=" and ".join(str(one.shape) for one in answers),
        )
