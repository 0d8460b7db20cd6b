from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import binomtest, norm
from simulated_studies import World

from doratune.errors import InputError
from doratune.records.study import StudyDifference
from doratune.stats.seeds import (
    PairedCell,
    adjusted,
    arm_summary,
    difference,
    pooled,
    without_verdict,
)

NOTHING = World(seed=0.0, means=(0.6, 0.6))
NO_DIFFERENCE = World(seed=0.1, means=(0.6, 0.6))


def found(study: np.ndarray, **changes: object) -> StudyDifference:
    seeds = list(range(study.shape[1]))
    return difference("lora", study[0], "dora", study[1], seeds).model_copy(update=changes)


def studies(world: World, count: int, seeds: int, rows: int, start: int = 0) -> np.ndarray:
    return world.studies(count, seeds, rows, np.random.default_rng(start))[0]


def test_an_arm_of_one_seed_has_the_wilson_interval() -> None:
    correct = np.arange(263)[None, :] < 81
    mean, (low, high) = arm_summary(correct)
    assert mean == 81 / 263
    assert (round(low, 4), round(high, 4)) == (0.2553, 0.3662)  # Newcombe 1998, table I, method 3


def test_an_arm_of_several_seeds() -> None:
    study = studies(World(seed=0.2), 1, 3, 400)[0]
    mean, (low, high) = arm_summary(study[0])
    assert mean == study[0].mean()
    spread = study[0].mean(1).std(ddof=1)
    assert high - low >= 2 * 4.303 * spread / np.sqrt(3)  # never less than the seeds alone give, t of 2
    assert 0 < low < mean < high < 1


@pytest.mark.parametrize("share", [True, False])
@pytest.mark.parametrize("seeds", [1, 3])
def test_all_correct_or_all_wrong_still_has_an_interval(share: bool, seeds: int) -> None:
    mean, (low, high) = arm_summary(np.full((seeds, 100), share))
    assert (low, high)[share] == mean == share
    assert 0.02 < high - low < 0.08  # by the rule of three, 3/100


def test_points_and_seeds_are_counted() -> None:
    before = np.array([[True, False, False, True], [True, True, False, False]])
    after = np.array([[True, True, True, True], [False, True, True, False]])
    whole = difference("lora", before, "dora", after, [3, 5])
    assert whole.points == pytest.approx(100 * 2 / 8)
    assert [(one.seed, one.points, one.only_from, one.only_to) for one in whole.seeds] == [
        (3, 50.0, 0, 2),
        (5, 0.0, 1, 1),
    ]
    assert whole.to_dict()["from"] == "lora"


def test_each_seed_has_mcnemars_exact_p() -> None:
    study = studies(World(seed=0.1), 1, 5, 200)[0]
    for seed, one in enumerate(found(study).seeds):
        before, after = study[0, seed], study[1, seed]
        wins = int((after & ~before).sum())
        split = binomtest(wins, int((after != before).sum()))
        assert (one.only_to, one.p_value) == (wins, pytest.approx(split.pvalue))


def test_one_seed_says_so_in_its_verdict() -> None:
    study = studies(World(seed=0.0, means=(0.3, 1.0)), 1, 1, 400)[0]
    one = found(study)
    assert one.p_value == one.seeds[0].p_value
    assert one.verdict == "DoRA is more accurate than LoRA; one seed only"
    assert all(entry.seeds is None for entry in one.needed)
    assert adjusted([one])[0].verdict == one.verdict
    assert pooled("lora", "dora", [PairedCell("a", *study)]).verdict == one.verdict


def test_swapping_the_arms_mirrors_the_result() -> None:
    study = studies(World(seed=0.05, means=(0.6, 1.2)), 1, 3, 1000)[0]
    there, back = found(study), found(study[::-1])
    assert there.points == pytest.approx(-back.points)
    assert there.interval == pytest.approx((-back.interval[1], -back.interval[0]), abs=0.01)
    assert (there.outcome, there.verdict) == ("better", "DoRA is more accurate than LoRA")
    assert (back.outcome, back.verdict) == ("worse", "DoRA is less accurate than LoRA")


def test_an_undecided_verdict_tells_the_differences_that_are_possible() -> None:
    one = found(studies(NO_DIFFERENCE, 1, 3, 300)[0])
    low, high = (f"{bound:+.1f}".replace("-", "\N{MINUS SIGN}") for bound in one.interval)
    assert one.outcome == "undecided" and one.interval[0] < 0 < one.interval[1]
    assert one.verdict == f"the data are compatible with differences in accuracy from {low} to {high} points"


@pytest.fixture
def without_planning(monkeypatch: pytest.MonkeyPatch) -> None:
    """Leave out the sizes needed, which take longer than the verdict and do not affect it."""
    monkeypatch.setattr("doratune.stats.seeds.needed", lambda *_: [])


@pytest.mark.slow
@pytest.mark.usefixtures("without_planning")
@pytest.mark.parametrize(
    ("seeds", "world"), [(1, NOTHING), (3, NOTHING), (3, NO_DIFFERENCE), (5, NO_DIFFERENCE)]
)
def test_verdicts_err_at_their_rate(seeds: int, world: World) -> None:
    drawn = studies(world, 400, seeds, 200)
    wrong = [found(study).outcome for study in drawn]
    share = 1 - wrong.count("undecided") / 400
    assert share <= 0.05 + 3 * np.sqrt(0.05 * 0.95 / 400)
    if seeds == 1 or world is NO_DIFFERENCE:  # else on the safe side
        assert share >= 0.005


@pytest.mark.slow
@pytest.mark.usefixtures("without_planning")
def test_a_family_errs_no_more_often_than_one_task(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gc.collect", lambda: 0)  # statsmodels calls it for every family
    drawn = studies(NO_DIFFERENCE, 4 * 150, 3, 150).reshape(150, 4, 2, 3, 150)
    wrong = sum(
        any(one.outcome != "undecided" for one in adjusted([found(study) for study in family]))
        for family in drawn
    )
    assert wrong / 150 <= 0.05 + 3 * np.sqrt(0.05 * 0.95 / 150)


@pytest.mark.slow
def test_a_large_difference_is_found() -> None:
    eight_points = World(seed=0.02, means=(0.6, 0.97))
    truth = norm.cdf(0.97 / 1.2) - norm.cdf(0.6 / 1.2)
    drawn = studies(eight_points, 100, 3, 1000)
    outcomes = [found(study).outcome for study in drawn]
    assert truth == pytest.approx(0.099, abs=0.002)
    assert outcomes.count("better") >= 90 and outcomes.count("worse") == 0


def test_holm_by_hand() -> None:
    study = studies(World(seed=0.02, means=(0.6, 1.2)), 1, 3, 500)[0]
    family = [found(study, p_value=p) for p in (0.01, 0.04, 0.03, 0.005)]
    after = adjusted(family)
    # ordered 0.005·4, 0.01·3, 0.03·2, 0.04·1, none below the one before it
    assert [one.p_adjusted for one in after] == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert [one.outcome for one in after] == ["better", "undecided", "undecided", "better"]
    assert [one.p_value for one in after] == [0.01, 0.04, 0.03, 0.005]
    assert after[1].verdict.endswith("points, and not significant after correction for the number of tasks")
    assert adjusted([]) == []


def test_what_has_no_verdict_does_not_count_in_the_correction() -> None:
    study = studies(World(seed=0.02, means=(0.6, 1.2)), 1, 3, 500)[0]
    nothing = without_verdict(found(study, p_value=0.9), "neither is shown to beat a guess (50.0 %)")
    after = adjusted([nothing, found(study, p_value=0.03), nothing, found(study, p_value=0.02)])
    assert [one.p_adjusted for one in after] == pytest.approx([0.9, 0.04, 0.9, 0.04])
    assert [one.outcome for one in after] == ["no-verdict", "better", "no-verdict", "better"]
    assert after[0].verdict == "no verdict: neither is shown to beat a guess (50.0 %)"
    assert adjusted([nothing]) == [nothing]


def test_pooled_is_the_mean_of_the_cells() -> None:
    small, large = studies(World(seed=0.1), 1, 3, 100)[0], studies(World(seed=0.1), 1, 3, 900, 1)[0]
    both = pooled("lora", "dora", [PairedCell("a", *small), PairedCell("b", *large)])
    assert both.points == pytest.approx((found(small).points + found(large).points) / 2)
    assert (both.seeds, both.needed) == ([], [])


def test_pooling_one_cell_is_that_cell() -> None:
    study = studies(World(seed=0.1), 1, 3, 300)[0]
    cell = PairedCell("a", *study, runs=(("l0", "d0"), ("l1", "d1"), ("l2", "d2")))
    alone, twice = (pooled("lora", "dora", [cell] * count) for count in (1, 2))
    assert alone.interval == found(study).interval
    assert alone.p_value == found(study).p_value
    # the same rows once more tell nothing more
    assert twice.interval == pytest.approx(alone.interval, abs=1e-9)


def test_pooled_intervals_hold_the_truth() -> None:
    """Four cells of four sizes whose seeds are the same runs, two of the cells on the same rows."""
    world, random = World(seed=0.05), np.random.default_rng(2)
    held = 0
    runs = (("l0", "d0"), ("l1", "d1"), ("l2", "d2"))
    for _ in range(300):
        answers, truth, _ = world.studies(1, 3, 600, random)
        cells = [answers[0, :, :, :150], answers[0, :, :, 150:300], answers[0, :, :, 300:]]
        low, high = pooled(
            "lora",
            "dora",
            [
                PairedCell(name, *cells[place], runs=runs)
                for name, place in (("a", 0), ("b", 1), ("c", 2), ("c", 2))
            ],
        ).interval
        held += low <= 100 * (truth[1] - truth[0]) <= high
    assert held / 300 >= 0.95 - 3 * np.sqrt(0.05 * 0.95 / 300)


def test_separately_trained_cells_have_narrower_intervals_that_still_hold_the_truth() -> None:
    """Seven cells of three seeds. Tying their seeds left two degrees of freedom, and 2.8 points each way."""
    world, random = World(seed=0.05), np.random.default_rng(5)
    held, widths = 0, []
    for _ in range(200):
        answers, truth, _ = world.studies(7, 3, 300, random)
        cells = [PairedCell(str(place), *one) for place, one in enumerate(answers)]
        low, high = pooled("lora", "dora", cells).interval
        held += low <= 100 * (truth[1] - truth[0]) <= high
        widths.append((high - low) / 2)
    assert held / 200 >= 0.95 - 3 * np.sqrt(0.05 * 0.95 / 200)
    assert np.mean(widths) < 2.0


def test_cells_with_unlike_spreads_and_numbers_of_seeds_are_pooled() -> None:
    random, held = np.random.default_rng(6), 0
    worlds = ((World(seed=0.2), 3), (World(seed=0.02), 5), (World(seed=0.05), 8))
    for _ in range(300):
        drawn = [world.studies(1, seeds, 250, random) for world, seeds in worlds]
        cells = [PairedCell(str(place), *answers[0]) for place, (answers, _, _) in enumerate(drawn)]
        truth = np.mean([100 * (one[1] - one[0]) for _, one, _ in drawn])
        low, high = pooled("lora", "dora", cells).interval
        held += low <= truth <= high
    assert held / 300 >= 0.95 - 3 * np.sqrt(0.05 * 0.95 / 300)


def test_what_does_not_fit_is_refused() -> None:
    right = np.ones((2, 5), dtype=bool)
    with pytest.raises(InputError, match="shape"):
        arm_summary(np.ones((0, 5), dtype=bool))
    with pytest.raises(InputError, match="int64"):
        arm_summary(np.ones((2, 5), dtype=np.int64))
    with pytest.raises(InputError, match="float64"):
        arm_summary(np.full((2, 5), 1.5))
    with pytest.raises(InputError, match=r"\(2, 5\) and \(2, 4\)"):
        difference("lora", right, "dora", right[:, :4], [0, 1])
    with pytest.raises(InputError, match="1 seeds, 2 runs"):
        difference("lora", right, "dora", right, [0])
    with pytest.raises(InputError, match="0 to 1"):
        difference("lora", np.array([[np.nan]]), "dora", np.array([[1.0]]), [0])
    with pytest.raises(InputError, match=r"one seed and others several(.|\n)*\[1, 2\]"):
        pooled("lora", "dora", [PairedCell("a", right, right), PairedCell("b", right[:1], right[:1])])
    with pytest.raises(InputError, match="different numbers of rows"):
        pooled("lora", "dora", [PairedCell("a", right, right), PairedCell("a", right[:, 1:], right[:, 1:])])
    with pytest.raises(InputError, match="no cells"):
        pooled("lora", "dora", [])


def test_an_interval_holds_no_difference_that_is_impossible() -> None:
    before = np.ones((2, 100), dtype=bool)
    after = before.copy()
    after[1, :20] = False
    found = difference("lora", before, "dora", after, [0, 1])
    assert found.interval[0] == -100 and found.points == pytest.approx(-10)
