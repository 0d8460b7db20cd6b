"""Two arms on the same rows: the paired difference and McNemar's exact test.

Both arms answered the same rows, so only the rows on which they disagree say which is better. Under the null
hypothesis such a row is as likely to favour one arm as the other: their split is binomial(n, 1/2).
"""

from __future__ import annotations

from collections.abc import Mapping

from scipy.stats import binomtest

from doratune.errors import InputError

SIGNIFICANCE = 0.05


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
