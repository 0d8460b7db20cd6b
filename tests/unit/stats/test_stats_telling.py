"""Arms that learned nothing give no verdict, and arms that learned a little still do."""

from __future__ import annotations

import numpy as np
import pytest
from synthetic_study import study

from doratune.records.study import MostGiven, StudyCell
from doratune.stats.outliers import outliers
from doratune.stats.seeds import difference
from doratune.stats.telling import beats, with_telling

STUDIES = 2000


def rows_right(
    random: np.random.Generator, accuracy: float, seeds: int, rows: int, alike: float = 0.7
) -> np.ndarray:
    """(studies, seeds, rows) of runs that answer a share of the rows alike and the rest for themselves."""
    shared = random.random((STUDIES, 1, rows), dtype=np.float32)
    own = random.random((STUDIES, seeds, rows), dtype=np.float32)
    return np.where(random.random((STUDIES, 1, rows), dtype=np.float32) < alike, shared, own) < accuracy


@pytest.mark.parametrize(("seeds", "rows"), [(1, 100), (3, 200)])
def test_guessing_is_taken_for_learning_in_one_cell_of_twenty(seeds: int, rows: int) -> None:
    guessed = rows_right(np.random.default_rng(0), 0.5, seeds, rows)
    share = np.mean([beats(one, 0.5) for one in guessed])
    assert share == pytest.approx(0.05, abs=0.025)


def test_a_weak_learner_is_kept() -> None:
    """Four points above the floor, with 1,000 rows and three seeds that are 2 points apart."""
    random = np.random.default_rng(1)
    kept = 0
    for _ in range(200):
        each = 0.54 + 0.02 * random.normal(size=(3, 1))
        kept += beats(random.random((3, 1000)) < each, 0.5)
    assert kept / 200 >= 0.9
    few = np.mean([beats(one, 0.5) for one in rows_right(random, 0.6, 3, 100)])
    assert few >= 0.6, "a hundred rows keep most learners of ten points"


def test_ends_are_told_apart() -> None:
    assert beats(np.ones((1, 5), dtype=bool), 0.5)
    assert not beats(np.zeros((3, 50)), 0.5)
    assert not beats(np.ones((3, 1)), 0.5), "one row shows nothing"


def cell_of(answers: dict[str, np.ndarray], shares: dict[str, float] | None = None) -> StudyCell:
    """A cell of LoRA and DoRA with a majority of 62 %, whose runs give one answer to such shares of rows."""
    given = {"lora": 0.6, "dora": 0.6} | (shares or {})
    whole = study(methods=("lora", "dora"), tasks=("boolq",)).cells[0]
    arms = [
        arm.model_copy(
            update={
                "runs": [
                    run.model_copy(update={"most_given": MostGiven(answer="true", share=given[arm.name])})
                    for run in arm.runs
                ]
            }
        )
        for arm in whole.arms
    ]
    found = difference("lora", answers["lora"], "dora", answers["dora"], [0, 1, 2])
    cell = whole.model_copy(update={"arms": arms, "differences": [found], "tells_nothing": None})
    return with_telling(cell, answers)


def constant(share: float, rows: int = 1000) -> np.ndarray:
    return np.tile(np.arange(rows) < share * rows, (3, 1))


def learned(accuracy: float, start: int) -> np.ndarray:
    return np.random.default_rng(start).random((3, 1000)) < accuracy


def test_two_constants_have_no_verdict() -> None:
    """They differ on three rows of a thousand, which once read "no difference larger than 0.3 points"."""
    cell = cell_of({"lora": constant(0.62), "dora": constant(0.623)})
    (one,) = cell.differences
    reason = "neither LoRA nor DoRA is shown to beat always giving the most frequent answer (62.0 %)"
    assert cell.tells_nothing == reason
    assert (one.outcome, one.verdict) == ("no-verdict", f"no verdict: {reason}")
    assert one.points == pytest.approx(0.3), "the figures stay"


def test_one_answer_to_nearly_every_row_is_not_learning() -> None:
    answers = {"lora": learned(0.68, 1), "dora": learned(0.7, 2)}
    assert cell_of(answers).tells_nothing is None
    assert cell_of(answers, {"lora": 0.96, "dora": 0.94}).tells_nothing is None, "one arm learned"
    same = cell_of(answers, {"lora": 0.96, "dora": 0.95})
    assert same.tells_nothing == "LoRA and DoRA give one answer to 95 % of the rows or more"
    mixed = cell_of(answers | {"dora": constant(0.62)}, {"lora": 0.96})
    assert mixed.tells_nothing == (
        "DoRA is not shown to beat always giving the most frequent answer (62.0 %) and LoRA gives one answer "
        "to 95 % of the rows or more"
    )


def test_a_collapsed_arm_against_one_that_learned_has_a_verdict() -> None:
    cell = cell_of({"lora": constant(0.5), "dora": learned(0.75, 3)})
    assert cell.tells_nothing is None
    assert cell.differences[0].outcome == "better"


def test_a_run_that_fell_is_named() -> None:
    accuracies = {"lora": [0.582, 0.51, 0.58, 0.577, 0.585], "dora": [0.58, 0.583, 0.579, 0.576, 0.581]}
    assert outliers(accuracies, 1000) == {"lora": [1]}
    assert outliers(accuracies, 100) == {}, "rows alone move accuracies by 5 points"
    perfect = {"lora": [1.0, 1.0, 0.9975], "dora": [1.0, 1.0, 1.0]}
    assert outliers(perfect, 400) == {}, "one row of 400"
    assert outliers(perfect | {"lora": [1.0, 1.0, 0.95]}, 400) == {"lora": [2]}
    assert outliers({"lora": [0.6, 0.1]}, 1000) == {}, "of two runs none is the odd one"
    assert outliers({"lora": [0.5, 0.6, 0.7], "dora": [0.45, 0.6, 0.72]}, 1000) == {}, "all are apart"


@pytest.mark.parametrize("seeds", [3, 5, 8])
def test_sound_runs_are_rarely_named_and_collapses_mostly(seeds: int) -> None:
    random, rows = np.random.default_rng(seeds), 2000
    sound = 0.58 + 0.01 * random.normal(size=(500, 2, seeds)) + 0.007 * random.normal(size=(500, 2, seeds))
    named = [outliers({"lora": list(one[0]), "dora": list(one[1])}, rows) for one in sound]
    assert np.mean([bool(one) for one in named]) < 0.12
    sound[:, 0, 1] -= 0.10
    named = [outliers({"lora": list(one[0]), "dora": list(one[1])}, rows) for one in sound]
    assert np.mean([1 in one.get("lora", []) for one in named]) > 0.7
