"""Several seeds of two methods on the same rows: means, paired differences, and what they tell."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.stats import binomtest

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

ARM_ROWS = (1.0, 1.0, 0.0, 0.0)  # two that are right, two that are wrong
PAIRED_ROWS = (1.0, -1.0)  # one that only the first has right, one that only the second has
ONE_SEED = "one seed only"
SIGNIFICANCE = 0.05


@dataclass(frozen=True)
class PairedCell:
    """The answers of two arms in one cell."""

    rows: str  #: what tells these test rows from others, such as their hash; cells may share their rows
    from_correct: np.ndarray  #: (seeds, rows), bool
    to_correct: np.ndarray  #: the same of the second arm


def arm_summary(correct: np.ndarray) -> tuple[float, tuple[float, float]]:
    """Mean accuracy over seeds and rows with its 95 % interval.

    The interval is Wilson's for one seed, else that of ``resampling``.

    Args:
        correct: (seeds, rows), bool.

    Raises:
        InputError: There are no seeds or no rows, or the values are not bool.
    """
    _check(correct)
    if len(correct) == 1:
        only = accuracy_with_interval(int(correct.sum()), correct.size)
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

    With one seed p is McNemar's exact test, with several the bootstrap's own. It is not corrected yet:
    ``adjusted`` does that for a whole family.

    Args:
        from_arm: Name of the first arm.
        from_correct: (seeds, rows), bool.
        to_arm: Name of the second arm.
        to_correct: The same of the second arm, the same seeds and rows in the same order.
        seeds: The seeds, in the order of the first axis; None where the two arms had different ones.

    Raises:
        InputError: The shapes do not fit together, there is nothing in them, or the values are not bool.
    """
    _check(from_correct, to_correct)
    if len(seeds) != len(from_correct):
        raise InputError("not as many seeds as runs", got=f"{len(seeds)} seeds, {len(from_correct)} runs")
    values = with_made_up_rows(to_correct.astype(float) - from_correct.astype(float), PAIRED_ROWS)
    draws = resampled_means([Block(values)])
    by_seed = [
        _seed_difference(seed, before, after)
        for seed, before, after in zip(seeds, from_correct, to_correct, strict=True)
    ]
    one_seed = len(by_seed) == 1
    return _told(
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

    Only the rows on which two arms disagree say which is better. Without a difference such a row is as likely
    to favour one as the other: their split is binomial(n, 1/2).

    Args:
        only_from: Rows that only the first arm had right.
        only_to: Rows that only the second arm had right.

    Returns:
        The p-value; 1.0 when the arms never disagree.
    """
    discordant = only_from + only_to
    return float(binomtest(only_from, discordant).pvalue) if discordant else 1.0


def pooled(from_arm: str, to_arm: str, cells: Sequence[PairedCell]) -> StudyDifference:
    """The mean of the cells' differences, each cell weighing the same.

    Cells that share their test rows are resampled together, and so are the seeds of all cells: a run may have
    answered several of them.

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
            raise InputError("cells of the same rows have different numbers of them", where=rows)
    blocks = [
        Block(with_made_up_rows(np.mean(group, axis=0), PAIRED_ROWS), len(group) / len(cells))
        for group in groups.values()
    ]
    draws = resampled_means(blocks)
    points = float(np.mean([_gain(cell.from_correct, cell.to_correct) for cell in cells]))
    return _told(from_arm, to_arm, points, draws, p_value=two_sided_p(draws), one_seed=counts == {1})


def adjusted(family: Sequence[StudyDifference]) -> list[StudyDifference]:
    """The same differences with p corrected over all of them (Holm), and outcome and verdict to match.

    Args:
        family: The differences of one question, such as DoRA minus LoRA on every task of one model and rank.
    """
    if not family:
        return []
    from statsmodels.stats.multitest import multipletests

    uncorrected = [one.p_value for one in family]
    corrected = np.asarray(multipletests(uncorrected, alpha=SIGNIFICANCE, method="holm")[1])
    # a pooled difference lists no seeds, but its words already say if there was one only
    return [
        _settled(one, float(p), one_seed=one.verdict.endswith(ONE_SEED))
        for one, p in zip(family, corrected, strict=True)
    ]


def _told(
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
    return _settled(found, p_value, one_seed=one_seed)


def _settled(found: StudyDifference, p_adjusted: float, *, one_seed: bool) -> StudyDifference:
    """``found`` with the outcome and the words that its corrected p gives."""
    p = min(1.0, p_adjusted)
    outcome: Outcome = "undecided"
    if p < SIGNIFICANCE and found.points:
        outcome = "better" if found.points > 0 else "worse"
    first, second = arm_name(found.from_arm), arm_name(found.to_arm)
    if outcome == "undecided":
        # rounded up: what the interval leaves room for must not look smaller
        most = math.ceil(10 * max(abs(bound) for bound in found.interval) - 1e-9) / 10
        words = f"no difference larger than {most:.1f} points can be told"
        if found.p_value < SIGNIFICANCE:
            words += ", after correction for the number of tasks"
    else:
        words = f"{second} is {outcome} than {first}"
    verdict = f"{words}; {ONE_SEED}" if one_seed else words
    return found.model_copy(update={"p_adjusted": p, "outcome": outcome, "verdict": verdict})


def _seed_difference(seed: int | None, before: np.ndarray, after: np.ndarray) -> SeedDifference:
    only_from, only_to = int((before & ~after).sum()), int((after & ~before).sum())
    return SeedDifference(
        seed=seed,
        points=_gain(before, after),
        only_from=only_from,
        only_to=only_to,
        p_value=min(1.0, mcnemar_p(only_from, only_to)),
    )


def _gain(before: np.ndarray, after: np.ndarray) -> float:
    """What the second has right more often, in points; of whole numbers, so that every mean rounds alike."""
    return 100 * (int(after.sum()) - int(before.sum())) / before.size


def _check(*answers: np.ndarray) -> None:
    """Refuse anything but tables of answers of one shape."""
    for one in answers:
        if one.ndim != 2 or not one.size or one.dtype != np.bool_:
            raise InputError(
                "no accuracy can be computed",
                got=f"answers of shape {one.shape}, {one.dtype}",
                expected="a bool for each of one or more seeds and rows",
            )
    if len({one.shape for one in answers}) > 1:
        raise InputError(
            "the arms did not answer the same rows with the same seeds",
            got=" and ".join(str(one.shape) for one in answers),
        )
