from __future__ import annotations

import math

import numpy as np
import pytest

from doratune.errors import InputError
from doratune.stats.seeds import difference, mcnemar_p
from doratune.study.cell import check_same_rows


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


def test_difference_of_one_seed_counts_points_and_discordant_rows() -> None:
    lora = np.array([[row < 4 for row in range(10)]])  # right on 0-3
    dora = np.array([[3 <= row < 9 for row in range(10)]])  # right on 3-8
    found = difference("lora", lora, "dora", dora, [7])
    (seed,) = found.seeds
    assert (seed.seed, seed.only_from, seed.only_to) == (7, 3, 5)
    assert found.points == seed.points == pytest.approx(20.0)
    assert found.p_value == seed.p_value == pytest.approx(2 * (1 + 8 + 28 + 56) / 256)
    assert found.outcome == "undecided"


def test_the_outcome_follows_the_exact_test() -> None:
    right, wrong = np.ones((1, 6), dtype=bool), np.zeros((1, 6), dtype=bool)
    assert difference("lora", wrong, "dora", right, [0]).outcome == "better"  # p = 2/64
    assert difference("lora", right, "dora", wrong, [0]).outcome == "worse"
    five = difference("lora", wrong[:, :5], "dora", right[:, :5], [0])  # p = 2/32 > 0.05
    assert five.outcome == "undecided"


def test_other_rows_are_refused() -> None:
    check_same_rows("lora", {0: True, 1: False}, "dora", {1: True, 0: True})
    with pytest.raises(InputError, match=r"same rows(.|\n)*2 rows(.|\n)*row 1"):
        check_same_rows("lora", {0: True, 1: True}, "dora", {0: True, 2: True})
