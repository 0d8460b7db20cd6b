from __future__ import annotations

import numpy as np
import pytest
from scipy import stats
from simulated_studies import World, net_rows

from doratune.stats.needed import POWER, expected, needed, power
from doratune.stats.seeds import PAIRED_ROWS, difference, mcnemar_p
from doratune.stats.spread import Block, Components, components, spread_of, with_made_up_rows


def table(differing: int, rows: int) -> np.ndarray:
    """One seed's differences, so many rows won and as many lost."""
    return np.repeat([1.0, -1.0, 0.0], [differing // 2, differing // 2, rows - differing])[None]


def test_rows_of_one_seed_are_the_textbook_number() -> None:
    """Connor 1987: the variance of a paired difference d is the discordance minus d²."""
    for one in needed(table(100, 1000)):
        share = one.points / 100
        variance = 0.1 + share - share**2
        textbook = (1.959964 + 0.841621) ** 2 * variance / share**2
        assert one.rows == pytest.approx(textbook, rel=1e-3, abs=1)
        assert one.seeds is None and one.seeds_range is None  # other seeds cannot be foreseen from one
        assert one.rows_range and one.rows_range[0] and one.rows_range[1]
        assert one.rows_range[0] < textbook < one.rows_range[1]


@pytest.mark.parametrize("seeds", [1, 3])
def test_identical_arms_need_what_a_difference_itself_takes(seeds: int) -> None:
    """A true difference of 1 point has a variance of 0.01 - 0.0001, so it takes some 780 rows, not 106."""
    one, two, five = needed(np.zeros((seeds, 500)))
    assert one.rows == pytest.approx((1.959964 + 0.841621) ** 2 * 0.0099 / 0.01**2, abs=2)
    assert [one.points, two.points, five.points] == [1, 2, 5]
    assert two.rows == pytest.approx(385, abs=2) and five.rows == pytest.approx(150, abs=2)
    assert one.rows_range and one.rows_range[0] == one.rows and (one.rows_range[1] or 0) > one.rows


def test_a_study_as_large_as_said_detects_what_identical_arms_did_not_show() -> None:
    """One arm wins on a share of rows and never loses, with McNemar's test; 106 rows detect it never."""
    random = np.random.default_rng(3)
    for entry in needed(np.zeros((1, 500))):
        assert entry.rows
        wins = random.binomial(entry.rows, entry.points / 100, size=2000)
        detected = np.mean([mcnemar_p(0, int(one)) < 0.05 for one in wins])
        assert detected == pytest.approx(POWER, abs=0.08)
    few = random.binomial(106, 0.01, size=2000)
    assert np.mean([mcnemar_p(0, int(one)) < 0.05 for one in few]) < 0.01


def test_no_number_is_enough_if_the_other_part_is_too_large() -> None:
    random = np.random.default_rng(0)
    seeds_differ = needed(
        net_rows(random, 3, 1000, 0.1) + np.array([[0.05], [0.0], [-0.05]]).repeat(1000, axis=1)
    )
    assert seeds_differ[0].rows is None  # seeds 5 points apart: three of them never tell 1 point
    assert seeds_differ[0].seeds is not None
    rows_differ = needed(net_rows(random, 1, 500, 0.2).repeat(3, axis=0))
    assert rows_differ[0].seeds is None  # 500 rows have a standard error of 2 points, whatever the seeds
    assert rows_differ[0].rows is not None


def test_smaller_differences_need_more() -> None:
    one, two, five = needed(net_rows(np.random.default_rng(1), 5, 2000, 0.1))
    assert one.rows and two.rows and five.rows and five.rows < two.rows < one.rows
    assert one.seeds and two.seeds and five.seeds and five.seeds <= two.seeds <= one.seeds


def test_the_numbers_given_are_the_smallest_and_lie_in_their_range() -> None:
    values = net_rows(np.random.default_rng(2), 5, 2000, 0.1) + 0.0
    for one in needed(values):
        found = expected(one.points / 100, values)[0]
        for count, size in ((one.rows, lambda n: (5, n)), (one.seeds, lambda n: (n, 2000))):
            if count is not None and count > 2:
                assert power(one.points / 100, found, *size(count)) >= POWER
                assert power(one.points / 100, found, *size(count - 1)) < POWER
        for count, bounds in ((one.rows, one.rows_range), (one.seeds, one.seeds_range)):
            assert bounds and (bounds[0] or 0) <= (count or 10**9) <= (bounds[1] or 10**9)


def test_a_range_holds_the_true_number_of_seeds() -> None:
    """Pilots of three seeds: their single numbers are from a third to three times the true one."""
    random, truth = np.random.default_rng(4), 0.02
    true = Components(seed=truth**2, row=0.0, rest=0.06)
    counts = np.arange(2, 200)
    enough = np.array([power(0.02, true, int(one), 800) for one in counts])
    right = int(counts[np.argmax(enough >= POWER)])
    held, single = 0, []
    for _ in range(100):
        by_seed = truth * random.normal(size=(3, 1))
        drawn = random.random((3, 800))
        values = (drawn < 0.02 + by_seed / 2 + 0.01).astype(float) - (drawn > 0.98 + by_seed / 2 + 0.01)
        entry = needed(values)[1]
        assert entry.seeds_range
        held += (entry.seeds_range[0] or 10**9) <= right <= (entry.seeds_range[1] or 10**9)
        single.append(entry.seeds or 10**9)
    assert held >= 80 - 3 * np.sqrt(100 * 0.8 * 0.2)
    low, high = np.quantile(single, [0.1, 0.9])
    assert high / low > 3, "why there is a range"


def test_the_bounds_are_those_of_chi_square_and_poisson() -> None:
    values = net_rows(np.random.default_rng(5), 4, 1000, 0.05) + 0.1 * np.arange(4.0)[:, None]
    found, (estimate, low, high) = components(values), expected(0.01, values)
    spread = values.mean(1).var(ddof=1) * 3
    assert estimate.seed == found.seed
    assert low.seed == pytest.approx(spread / stats.chi2.isf(0.1, 3) - found.rest / 1000)
    assert high.seed == pytest.approx(spread / stats.chi2.isf(0.9, 3) - found.rest / 1000)
    nothing = expected(0.01, np.zeros((1, 1000)))
    assert nothing[2].row - nothing[1].row == pytest.approx(-np.log(0.1) / 1000)  # Poisson: none seen


@pytest.mark.parametrize(
    ("world", "seeds"), [(World(seed=0.0, means=(0.6, 0.78)), 3), (World(seed=0.03, means=(0.6, 0.78)), 5)]
)
def test_a_study_of_that_size_detects_it(world: World, seeds: int) -> None:
    """Answers of the size that is said to be needed tell the difference in about four studies of five."""
    random = np.random.default_rng(11)
    large, truth, _ = world.studies(1, 60, 10_000, random)
    found = components(large[0, 1].astype(float) - large[0, 0])
    rows = next(n for n in range(50, 5000, 10) if power(truth[1] - truth[0], found, seeds, n) >= POWER)
    answers, _, _ = world.studies(200, seeds, rows, random)
    told = 0
    for study in answers:
        values = with_made_up_rows(study[1].astype(float) - study[0], PAIRED_ROWS)
        told += spread_of([Block(values)]).p_value < 0.05
    assert told / 200 == pytest.approx(POWER, abs=0.1)


def test_a_difference_tells_what_would_be_needed() -> None:
    same = np.random.default_rng(6).random((3, 400)) < 0.7
    entries = difference("lora", same, "dora", same, [0, 1, 2]).needed
    assert entries == needed(np.zeros((3, 400)))
