from __future__ import annotations

import math

import pytest

from doratune.errors import InputError
from doratune.stats.paired import mcnemar_p, paired_difference


@pytest.mark.parametrize(
    ("only_from", "only_to", "expected"),
    [
        (0, 0, 1.0),
        (0, 1, 1.0),
        (0, 5, 2 / 32),
        (1, 5, 2 * (1 + 6) / 64),
        (2, 8, 2 * (1 + 10 + 45) / 1024),  # 0.109375
        (8, 2, 2 * (1 + 10 + 45) / 1024),
        (3, 3, 1.0),
        (0, 10, 2 / 1024),
    ],
)
def test_p_is_the_two_sided_binomial_tail(only_from: int, only_to: int, expected: float) -> None:
    assert mcnemar_p(only_from, only_to) == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("total", [1, 2, 7, 20, 31])
def test_p_equals_twice_the_smaller_tail_counted_out(total: int) -> None:
    for only_from in range(total + 1):
        tail = sum(math.comb(total, count) for count in range(min(only_from, total - only_from) + 1))
        assert mcnemar_p(only_from, total - only_from) == pytest.approx(
            min(1.0, 2 * tail / 2**total), rel=1e-9
        )


def test_difference_counts_points_and_discordant_rows() -> None:
    lora = {row: row < 4 for row in range(10)}  # right on 0-3
    dora = {row: 3 <= row < 9 for row in range(10)}  # right on 3-8
    found = paired_difference("lora", lora, "dora", dora)
    assert (found.only_from, found.only_to) == (3, 5)
    assert found.points == pytest.approx(20.0)
    assert found.p_value == pytest.approx(2 * (1 + 8 + 28 + 56) / 256)
    assert found.verdict == "no difference can be told from these rows"
    assert found.to_dict()["from"] == "lora"
    assert found.to_dict()["to"] == "dora"


def test_verdicts_name_the_arm_that_differs() -> None:
    right, wrong = dict.fromkeys(range(6), True), dict.fromkeys(range(6), False)
    assert paired_difference("lora", wrong, "dora", right).verdict == "dora is better"  # p = 2/64
    assert paired_difference("lora", right, "dora", wrong).verdict == "dora is worse"
    five = {row: True for row in range(5)}  # p = 2/32 > 0.05
    undecided = paired_difference("lora", dict.fromkeys(range(5), False), "dora", five)
    assert undecided.verdict == "no difference can be told from these rows"


def test_order_of_the_rows_does_not_matter() -> None:
    lora = {0: True, 1: False, 2: False}
    dora = {2: True, 1: True, 0: False}
    assert paired_difference("lora", lora, "dora", dora).points == pytest.approx(100 / 3)


def test_other_rows_are_refused() -> None:
    with pytest.raises(InputError, match=r"same rows(.|\n)*2 rows(.|\n)*row 1"):
        paired_difference("lora", {0: True, 1: True}, "dora", {0: True, 2: True})
    with pytest.raises(InputError, match="no rows"):
        paired_difference("lora", {}, "dora", {})
