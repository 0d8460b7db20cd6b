from __future__ import annotations

import numpy as np
import pytest
from simulated_studies import World

from doratune.stats import resampling
from doratune.stats.needed import POWER, needed, power
from doratune.stats.resampling import (
    Block,
    Components,
    components,
    resampled_means,
    two_sided_p,
    with_made_up_rows,
)
from doratune.stats.seeds import PAIRED_ROWS


def test_rows_of_one_seed_are_the_textbook_number() -> None:
    varying = Components(seed=0.0, row=0.1, rest=0.0)
    for one in needed(varying, 1, 500):
        textbook = (1.959964 + 0.841621) ** 2 * 0.1 / (one.points / 100) ** 2
        assert one.rows == pytest.approx(textbook, rel=1e-3, abs=1)
        assert one.seeds is None  # other seeds cannot be foreseen from one


def test_no_number_is_enough_if_the_other_part_is_too_large() -> None:
    seeds_differ = needed(Components(seed=0.0025, row=0.0, rest=0.1), 3, 1000)
    assert seeds_differ[0].rows is None  # seeds 5 points apart: three of them never tell 1 point
    assert seeds_differ[0].seeds is not None
    rows_differ = needed(Components(seed=0.0, row=0.2, rest=0.0), 3, 500)
    assert rows_differ[0].seeds is None  # 500 rows have a standard error of 2 points, whatever the seeds
    assert rows_differ[0].rows is not None


def test_smaller_differences_need_more() -> None:
    one, two, five = needed(Components(seed=0.0001, row=0.02, rest=0.1), 5, 2000)
    assert five.seeds and two.seeds and one.seeds and five.seeds < two.seeds < one.seeds
    assert five.rows and two.rows and five.rows < two.rows


def test_the_numbers_given_are_the_smallest() -> None:
    found = Components(seed=0.0001, row=0.02, rest=0.1)
    for one in needed(found, 5, 2000):
        for count, size in ((one.rows, lambda n: (5, n)), (one.seeds, lambda n: (n, 2000))):
            if count is not None and count > 2:
                assert power(one.points / 100, found, *size(count)) >= POWER
                assert power(one.points / 100, found, *size(count - 1)) < POWER


@pytest.mark.parametrize(
    ("world", "seeds"), [(World(seed=0.0, means=(0.6, 0.78)), 3), (World(seed=0.03, means=(0.6, 0.78)), 5)]
)
def test_a_study_of_that_size_detects_it(world: World, seeds: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Answers of the size that is said to be needed tell the difference in about four studies of five."""
    monkeypatch.setattr(resampling, "RESAMPLES", 1500)
    random = np.random.default_rng(11)
    large, truth, _ = world.studies(1, 60, 10_000, random)
    found = components(large[0, 1].astype(float) - large[0, 0])
    rows = next(n for n in range(50, 5000, 10) if power(truth[1] - truth[0], found, seeds, n) >= POWER)
    answers, _, _ = world.studies(300, seeds, rows, random)
    told = 0
    for study in answers:
        values = with_made_up_rows(study[1].astype(float) - study[0], PAIRED_ROWS)
        told += two_sided_p(resampled_means([Block(values)])) < 0.05
    assert told / 300 == pytest.approx(POWER, abs=0.08)
