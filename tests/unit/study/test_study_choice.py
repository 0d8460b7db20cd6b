"""The rule that chooses a learning rate, and what choosing per seed is for."""

from __future__ import annotations

import math

import numpy as np
import pytest

from doratune.stats.seeds import difference
from doratune.study.choice import Tried, choose_rate, choose_shared_rate, extended
from doratune.study.rates import Added, extended_rates


@pytest.mark.parametrize(
    ("tried", "rate"),
    [
        ([(1e-4, 7), (2e-4, 9), (3e-4, 8)], 2e-4),
        ([(3e-4, 9), (2e-4, 9), (1e-4, 8)], 2e-4),
        ([(1e-4, 0)], 1e-4),
    ],
)
def test_without_likelihoods_the_most_accurate_rate_is_chosen_and_in_a_tie_the_smallest(
    tried: list[tuple[float, int]], rate: float
) -> None:
    assert choose_rate([Tried(one, correct, 10) for one, correct in tried]) == rate


def test_within_one_standard_error_the_likelihood_decides() -> None:
    error = math.sqrt(0.8 * 0.2 / 100)  # 4 rows of 100
    assert Tried(1e-3, 80, 100).standard_error == pytest.approx(error)
    best, within, below = Tried(1e-3, 80, 100, 0.6), Tried(3e-3, 76, 100, 0.5), Tried(1e-2, 75, 100, 0.4)
    assert choose_rate([best, within, below]) == 3e-3, "the most likely is further away than one error"
    assert choose_rate([best, below]) == 1e-3
    assert choose_rate([best, Tried(1e-4, 76, 100, 0.6)]) == 1e-4, "of equals the smallest"
    assert choose_rate([best, Tried(3e-3, 76, 100)]) == 1e-3, "not all likelihoods are known"
    assert choose_rate([best, Tried(3e-3, 76, 100, 0.5, diverged=True)]) == 1e-3
    assert choose_rate([Tried(3e-3, 0, 100, diverged=True)]) is None


def test_the_shared_rate_is_the_best_for_both_arms_and_all_seeds_together() -> None:
    def arm(*accuracies: dict[float, int]) -> dict[int, list[Tried]]:
        return {
            seed: [Tried(rate, max(count, 0), 100, diverged=count < 0) for rate, count in one.items()]
            for seed, one in enumerate(accuracies)
        }

    lora = arm({1e-4: 60, 1e-3: 70, 1e-2: 90}, {1e-4: 62, 1e-3: 70, 1e-2: 90})
    dora = arm({1e-4: 60, 1e-3: 72, 1e-2: 30}, {1e-4: 66, 1e-3: 64, 1e-2: 30})
    assert choose_rate(lora[0]) == 1e-2
    assert choose_shared_rate(lora, dora) == 1e-3
    lost = arm({1e-4: 60, 1e-3: 72}, {1e-4: 66, 1e-3: -1})
    assert choose_shared_rate(lora, lost) == 1e-4, "a rate that diverged with a seed has no pair"
    assert choose_shared_rate(lora, arm({5e-4: 60}, {5e-4: 60})) is None


def test_a_list_is_extended_by_its_own_factor() -> None:
    assert extended_rates([2e-4, 6e-4, 2e-3], Added()) == [2e-4, 6e-4, 2e-3]
    assert extended_rates([2e-4, 6e-4, 2e-3], Added(2, 1)) == [2.22e-5, 6.67e-5, 2e-4, 6e-4, 2e-3, 6.67e-3]


def test_a_list_is_extended_where_any_seed_of_any_arm_has_its_best() -> None:
    def seeds(*best: int | None) -> dict[int, list[Tried]]:
        return {
            seed: [
                Tried(rate, 9 if place == one else 1, 10, diverged=one is None)
                for place, rate in enumerate((1e-4, 1e-3, 1e-2))
            ]
            for seed, one in enumerate(best)
        }

    assert extended([seeds(1, 1), seeds(1, 1)], Added(), 2) == Added()
    assert extended([seeds(1, 1), seeds(1, 2)], Added(), 2) == Added(0, 1)
    assert extended([seeds(0, 1), seeds(1, 2)], Added(), 2) == Added(1, 1)
    assert extended([seeds(0, 1)], Added(2, 1), 2) == Added(2, 1), "the limit"
    assert extended([seeds(0, 1)], Added(), 0) == Added()
    assert extended([seeds(1, None)], Added(), 2) == Added(), "a seed that diverged has no best"


RATES = (1e-4, 1e-3, 1e-2)
TRUTH = (0.605, 0.63, 0.605)  # of both methods alike
VALIDATION, TEST, SEEDS, STUDIES = 500, 1000, 8, 40


def simulated(random: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Of two identical methods the numbers of right validation rows, (2, seeds, rates), and the test answers.

    Rows differ in difficulty, alike for all runs; each run has its own luck.
    """
    run = random.normal(scale=0.01, size=(2, SEEDS, len(RATES)))
    share = np.clip(np.array(TRUTH) + run, 0, 1)[..., None]
    easy = random.beta(1.5, 1.5, size=TEST)
    test = random.random((2, SEEDS, len(RATES), TEST)) < np.clip(share + 0.6 * (easy - 0.5), 0, 1)
    validation = random.binomial(VALIDATION, share[..., 0])
    return validation, test


def test_choosing_once_rejects_equality_too_often_and_per_seed_does_not() -> None:
    """A choice by one seed carries its luck into all: the interval of the seeds knows nothing of it."""
    random, rejected = np.random.default_rng(27), {"seed": 0, "arm": 0}
    for _ in range(STUDIES):
        validation, test = simulated(random)
        best = [[RATES.index(_chosen(counts)) for counts in of_method] for of_method in validation.tolist()]
        for per in rejected:
            first, second = (
                np.array([answers[seed, own[seed if per == "seed" else 0]] for seed in range(SEEDS)])
                for answers, own in zip(test, best, strict=True)
            )
            rejected[per] += difference("lora", first, "dora", second, range(SEEDS)).p_value < 0.05
    assert rejected["arm"] >= 0.15 * STUDIES, rejected
    assert rejected["seed"] <= 0.1 * STUDIES, rejected


def _chosen(counts: list[int]) -> float:
    rate = choose_rate([Tried(one, count, VALIDATION) for one, count in zip(RATES, counts, strict=True)])
    assert rate is not None
    return rate
