from __future__ import annotations

import itertools
import math

import numpy as np
import pytest

from doratune.errors import InputError
from doratune.stats.seeds import arm_summary, difference, mcnemar_p, sign_flip_p
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


@pytest.mark.parametrize("parts", [(0.5,), (0.5, 1 / 3, 0.25, 0.2)])
def test_with_ties_p_is_counted_out_over_all_signs(parts: tuple[float, ...]) -> None:
    random = np.random.default_rng(len(parts))
    credits = np.array([0.0, 1.0, *parts])
    for rows in (1, 4, 9, 12):
        differences = random.choice(credits, rows) - random.choice(credits, rows)
        sums = [
            abs(sum(sign * abs(one) for sign, one in zip(signs, differences, strict=True)))
            for signs in itertools.product((-1, 1), repeat=rows)
        ]
        share = np.mean([one >= abs(differences.sum()) - 1e-9 for one in sums])
        assert sign_flip_p(differences) == pytest.approx(share, abs=1e-12)


def test_ties_among_many_candidates_are_drawn_where_they_cannot_be_counted_out() -> None:
    """Sizes such as 1/23 and 1/19 have no small common unit. The truth here is that of all 4,096 choices."""
    random = np.random.default_rng(2)
    credits = np.array([0.0, 1.0, *(1 / ties for ties in (7, 11, 13, 17, 19, 23, 26))])
    differences = random.choice(credits, 12) - random.choice(credits, 12)
    signs = np.array(list(itertools.product((-1, 1), repeat=12)))
    sums = np.abs(signs @ np.abs(differences))
    share = np.mean(sums >= abs(differences.sum()) - 1e-9)
    found = sign_flip_p(differences)
    assert found == pytest.approx(share, abs=0.01)
    assert found == sign_flip_p(differences)


def test_without_ties_the_sign_flip_test_is_mcnemars() -> None:
    differences = np.repeat([-1.0, 0.0, 1.0], (239, 1375, 386))
    assert sign_flip_p(differences) == mcnemar_p(239, 386)
    # A thousand rows on which both tied say nothing.
    assert sign_flip_p(np.append(differences, np.zeros(1000))) == mcnemar_p(239, 386)
    # With one half more it is either of two sums of 625 signs that is reached, 147 or 149.
    reached = (mcnemar_p(239, 386) + mcnemar_p(238, 387)) / 2
    assert sign_flip_p(np.append(differences, 0.5)) == pytest.approx(reached, rel=1e-4)
    assert sign_flip_p(np.zeros(5)) == 1.0


def test_a_row_of_a_tie_counts_in_part() -> None:
    lora = np.array([[1.0, 0.5, 0.0, 1 / 3]])
    dora = np.array([[1.0, 1.0, 0.5, 1 / 3]])
    found = difference("lora", lora, "dora", dora, [0])
    (seed,) = found.seeds
    assert found.points == pytest.approx(100 * 1.0 / 4)
    assert (seed.only_from, seed.only_to, seed.p_value) == (0, 2, pytest.approx(0.5))
    mean, (low, high) = arm_summary(lora)
    assert mean == pytest.approx(11 / 24) and 0 < low < mean < high < 1


@pytest.mark.slow
def test_with_ties_the_test_errs_at_its_rate() -> None:
    """Two arms that tie often and do not differ: p below 5 % in at most about 5 % of studies."""
    random = np.random.default_rng(0)
    wrong = 0
    for _ in range(2000):
        arms = random.choice([0.0, 0.5, 1.0], size=(2, 80), p=[0.3, 0.4, 0.3])
        wrong += sign_flip_p(arms[1] - arms[0]) < 0.05
    assert 0.02 < wrong / 2000 < 0.05 + 3 * math.sqrt(0.05 * 0.95 / 2000)


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
