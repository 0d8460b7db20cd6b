"""Two arms on the same rows: the paired difference and McNemar's exact test.

Both arms answered the same rows, so only the rows on which they disagree say which is better. Under the null
hypothesis such a row is as likely to favour one arm as the other: their split is binomial(n, 1/2).
"""

from __future__ import annotations

from collections.abc import Mapping

from scipy.stats import binomtest

from doratune.errors import InputError
from doratune.records.comparison import PairedDifference

SIGNIFICANCE = 0.05
UNDECIDED = "no difference can be told from these rows"


def mcnemar_p(only_from: int, only_to: int) -> float:
    """Two-sided p-value of McNemar's exact test.

    Args:
        only_from: Rows that only the first arm had right.
        only_to: Rows that only the second arm had right.

    Returns:
        The p-value; 1.0 when the arms never disagree.
    """
    discordant = only_from + only_to
    return float(binomtest(only_from, discordant).pvalue) if discordant else 1.0


def paired_difference(
    from_arm: str, from_correct: Mapping[int, bool], to_arm: str, to_correct: Mapping[int, bool]
) -> PairedDifference:
    """The accuracy of ``to_arm`` minus that of ``from_arm``, with a test of whether it is more than chance.

    Args:
        from_arm: Name of the first arm.
        from_correct: For each row id, whether the first arm had it right.
        to_arm: Name of the second arm.
        to_correct: The same for the second arm.

    Raises:
        InputError: The arms did not answer the same rows, or there are none.
    """
    check_same_rows(from_arm, from_correct, to_arm, to_correct)
    if not from_correct:
        raise InputError("there are no rows to compare", where=f"{from_arm}, {to_arm}")
    only_from = sum(right and not to_correct[row] for row, right in from_correct.items())
    only_to = sum(right and not from_correct[row] for row, right in to_correct.items())
    p_value = mcnemar_p(only_from, only_to)
    return PairedDifference(
        from_arm=from_arm,
        to_arm=to_arm,
        points=100 * (only_to - only_from) / len(from_correct),
        only_from=only_from,
        only_to=only_to,
        p_value=p_value,
        verdict=_verdict(to_arm, only_to - only_from, p_value),
    )


def check_same_rows(
    first: str, first_correct: Mapping[int, bool], second: str, second_correct: Mapping[int, bool]
) -> None:
    """Refuse two arms whose predictions are of different rows.

    Raises:
        InputError: A row of one arm is missing in the other.
    """
    unpaired = first_correct.keys() ^ second_correct.keys()
    if unpaired:
        raise InputError(
            "the arms did not answer the same rows, so they cannot be compared",
            where=f"{first}, {second}",
            got=f"{len(unpaired)} rows that only one of them answered, such as row {min(unpaired)}",
            fix="evaluate both on the same data with the same --limit",
        )


def _verdict(to_arm: str, gain: int, p_value: float) -> str:
    if p_value >= SIGNIFICANCE:
        return UNDECIDED
    return f"{to_arm} is {'better' if gain > 0 else 'worse'}"
