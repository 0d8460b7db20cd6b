from __future__ import annotations

import numpy as np
import pytest
from scipy import stats
from simulated_studies import World

from doratune.stats import resampling
from doratune.stats.resampling import (
    Block,
    components,
    interval,
    resampled_means,
    two_sided_p,
    with_made_up_rows,
)
from doratune.stats.seeds import ARM_ROWS, PAIRED_ROWS

STUDIES = 500
ERROR = 3 * np.sqrt(0.95 * 0.05 / STUDIES)  # three Monte-Carlo standard errors of a rate of 95 or 5 %

WORLDS = {
    "seeds do not matter": World(seed=0.0),
    "seeds and rows matter alike": World(seed=0.05, row_by_method=0.8),
    "seeds matter most": World(seed=0.25),
    "almost all right": World(seed=0.1, means=(2.6, 2.8)),
}


@pytest.fixture(autouse=True)
def fewer_resamples(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(resampling, "RESAMPLES", 1500)


def paired_values(study: np.ndarray) -> np.ndarray:
    return with_made_up_rows(study[1].astype(float) - study[0], PAIRED_ROWS)


def bounds(values: np.ndarray) -> tuple[float, float]:
    return interval(resampled_means([Block(values)]))


@pytest.mark.slow
@pytest.mark.parametrize("world", WORLDS.values(), ids=WORLDS)
@pytest.mark.parametrize("seeds", [3, 5])
def test_intervals_of_several_seeds_hold_the_truth(world: World, seeds: int) -> None:
    answers, truth, _ = world.studies(STUDIES, seeds, 300, np.random.default_rng(7))
    held = np.zeros(2)
    for study in answers:
        low, high = bounds(paired_values(study))
        held[0] += low <= truth[1] - truth[0] <= high
        low, high = bounds(with_made_up_rows(study[1], ARM_ROWS))
        held[1] += low <= truth[1] <= high
    assert (held / STUDIES >= 0.95 - ERROR).all(), held / STUDIES


@pytest.mark.parametrize("world", WORLDS.values(), ids=WORLDS)
def test_the_interval_of_one_seed_is_about_that_seed(world: World) -> None:
    answers, _, own = world.studies(STUDIES, 1, 300, np.random.default_rng(8))
    held = 0
    for study, truth in zip(answers, own[:, 1, 0] - own[:, 0, 0], strict=True):
        low, high = bounds(paired_values(study))
        held += low <= truth <= high
    assert held / STUDIES >= 0.95 - ERROR
    if world.means[0] < 1:  # near 100 % the made-up rows widen it
        assert held / STUDIES <= 0.95 + ERROR


@pytest.mark.parametrize("seeds", [3, 5])
def test_intervals_are_not_wider_than_they_must_be(seeds: int) -> None:
    world = World(seed=0.25)
    answers, truth, _ = world.studies(STUDIES, seeds, 300, np.random.default_rng(9))
    means = (answers[:, 1].mean((1, 2)) - answers[:, 0].mean((1, 2))) - (truth[1] - truth[0])
    found = [bounds(paired_values(study)) for study in answers]
    best = (
        2 * stats.t.isf(0.025, seeds - 1) * means.std()
    )  # of one who knows the spread, but not that he does
    assert np.mean([high - low for low, high in found]) <= 1.1 * best
    held = np.mean([low <= truth[1] - truth[0] <= high for low, high in found])
    assert held <= 0.95 + ERROR


def test_the_plain_bootstrap_is_not_enough() -> None:
    """What the form here is for: on these very data the usual one misses far more often than 5 %."""
    answers, truth, _ = World(seed=0.25).studies(200, 3, 300, np.random.default_rng(7))
    random = np.random.default_rng(0)
    held = 0
    for study in answers:
        values = study[1].astype(float) - study[0]
        seeds = random.multinomial(3, [1 / 3] * 3, size=1000) / 3
        rows = random.multinomial(300, [1 / 300] * 300, size=1000) / 300
        low, high = np.quantile(((seeds @ values) * rows).sum(1), [0.025, 0.975])
        held += low <= truth[1] - truth[0] <= high
    assert held / 200 < 0.87


def test_components_are_found() -> None:
    random = np.random.default_rng(3)
    found = []
    for _ in range(300):
        values = (
            0.3 * random.normal(size=(4, 1)) + random.normal(size=(1, 60)) + 0.5 * random.normal(size=(4, 60))
        )
        found.append(components(values))
    assert np.mean([one.seed for one in found]) == pytest.approx(0.09, rel=0.15)
    assert np.mean([one.row for one in found]) == pytest.approx(1.0, rel=0.05)
    assert np.mean([one.rest for one in found]) == pytest.approx(0.25, rel=0.05)
    alone = components(np.array([[0.0, 1.0, 1.0, 0.0]]))
    assert (alone.seed, alone.row, alone.rest) == (0.0, pytest.approx(1 / 3), 0.0)


def test_rows_drawn_by_their_means_are_rows_drawn_one_by_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(resampling, "RESAMPLES", 20_000)
    random = np.random.default_rng(4)
    values = (random.random((1, 150)) < 0.9).astype(float)
    draws = resampled_means([Block(values)])
    one_by_one = values[0][random.integers(0, 150, size=(20_000, 150))].mean(1)
    assert draws.mean() == pytest.approx(values.mean(), abs=0.001)
    assert interval(draws) == pytest.approx(np.quantile(one_by_one, [0.025, 0.975]), abs=0.008)


def test_the_same_seed_thrice_is_one_seed() -> None:
    values = paired_values(World(seed=0.2).studies(1, 1, 200, np.random.default_rng(5))[0][0])
    assert bounds(np.repeat(values, 3, axis=0)) == pytest.approx(bounds(values), abs=1e-12)


def test_p_agrees_with_the_interval() -> None:
    answers, _, _ = World(seed=0.05).studies(200, 3, 300, np.random.default_rng(6))
    seen = set()
    for study in answers:
        draws = resampled_means([Block(paired_values(study))])
        low, high = interval(draws)
        seen.add(two_sided_p(draws) < 0.05)
        # one draw of 1,500 more or less is all the two may differ by
        assert (two_sided_p(draws) < 0.05) == (not low <= 0 <= high) or min(abs(low), abs(high)) < 0.002
    assert seen == {True, False}


def test_the_same_answers_give_the_same_draws() -> None:
    values = paired_values(World(seed=0.1).studies(1, 3, 50, np.random.default_rng(1))[0][0])
    assert (resampled_means([Block(values)]) == resampled_means([Block(values)])).all()
