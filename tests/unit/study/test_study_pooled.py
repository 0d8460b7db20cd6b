"""Cells that tell nothing stay out of the correction and of the headline, and trainings are told apart."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from study_support import MadeUpRunner, Silent, opened
from synthetic_study import ENVIRONMENT, study

from doratune.records.study import StudyRecord
from doratune.stats.seeds import PairedCell, difference
from doratune.stats.telling import with_telling
from doratune.study.assemble import record_of
from doratune.study.cell import Answered
from doratune.study.study import run_study

RUNS = (("lora-0", "dora-0"), ("lora-1", "dora-1"), ("lora-2", "dora-2"))


def answered(
    task: str, accuracy: float, seeds: int = 3, runs: tuple[tuple[str, str], ...] | None = None
) -> Answered:
    """A cell whose arms have about such an accuracy; the most frequent answer is right on 62 %."""
    random = np.random.default_rng(len(task))
    answers = {arm: random.random((seeds, 500)) < accuracy for arm in ("lora", "dora")}
    whole = study(methods=("lora", "dora"), tasks=("boolq",), seeds=seeds).cells[0]
    found = difference("lora", answers["lora"], "dora", answers["dora"], range(seeds))
    cell = with_telling(whole.model_copy(update={"task": task, "differences": [found]}), answers)
    return Answered(cell, {("lora", "dora"): PairedCell(task, **_sides(answers), runs=runs)}, {})


def _sides(answers: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    return {"from_values": answers["lora"], "to_values": answers["dora"]}


def record(*cells: Answered) -> StudyRecord:
    return record_of(list(cells), title="t", reproduce="r", environment=ENVIRONMENT)


def test_the_mean_is_given_without_and_with_cells_that_tell_nothing() -> None:
    made = record(answered("a", 0.8), answered("bb", 0.75), answered("ccc", 0.5))
    headline, whole = made.pooled
    assert headline.cells == ["a (continuation)", "bb (continuation)"] and headline.tells_nothing == []
    assert len(whole.cells) == 3 and whole.tells_nothing == ["ccc (continuation)"]
    points = [cell.differences[0].points for cell in made.cells]
    assert headline.difference.points == pytest.approx(np.mean(points[:2]))
    assert whole.difference.points == pytest.approx(np.mean(points))
    assert [bool(cell.tells_nothing) for cell in made.cells] == [False, False, True]


def test_a_cell_that_tells_nothing_does_not_count_in_the_correction() -> None:
    with_it = record(answered("a", 0.8), answered("bb", 0.75), answered("ccc", 0.5))
    without = record(answered("a", 0.8), answered("bb", 0.75))
    assert [cell.differences for cell in with_it.cells[:2]] == [cell.differences for cell in without.cells]
    assert with_it.cells[2].differences[0].outcome == "no-verdict"
    assert with_it.pooled[0] == without.pooled[0]


def test_without_any_that_tells_something_the_mean_has_no_verdict() -> None:
    (only,) = record(answered("a", 0.5), answered("bb", 0.55)).pooled
    assert len(only.tells_nothing) == 2 and only.difference.outcome == "no-verdict"
    first, *more = record(answered("a", 0.8), answered("bb", 0.5)).pooled
    assert more == [] and first.tells_nothing == ["bb (continuation)"], "one cell is its own headline"


def test_seeds_are_tied_only_in_cells_of_one_training() -> None:
    apart = record(answered("a", 0.8), answered("bb", 0.8)).pooled[0].difference
    tied = record(answered("a", 0.8, runs=RUNS), answered("bb", 0.8, runs=RUNS)).pooled[0].difference
    assert apart.points == tied.points
    assert apart.interval != tied.interval


def test_cells_with_unlike_numbers_of_seeds_are_pooled_and_those_of_one_seed_apart() -> None:
    one, several = record(
        answered("a", 0.8, seeds=1),
        answered("bb", 0.8, seeds=3),
        answered("ccc", 0.8, seeds=1),
        answered("dddd", 0.8, seeds=8),
    ).pooled
    assert one.cells == ["a (continuation)", "ccc (continuation)"]
    assert one.difference.verdict.endswith("one seed only")
    assert several.cells == ["bb (continuation)", "dddd (continuation)"]


def test_cells_with_other_numbers_of_the_same_test_rows_are_pooled(tmp_path: Path) -> None:
    tasks = [
        {"train": "sample-boolq", "rows": 32, "validation_rows": 20, "eval_rows": 40},
        {
            "train": "sample-winogrande",
            "test": ["sample-boolq"],
            "rows": 32,
            "validation_rows": 20,
            "eval_rows": 30,
        },
    ]
    found = run_study(opened(tmp_path, tasks=tasks), MadeUpRunner(), Silent(), reproduce="r")
    assert [cell.rows for cell in found.cells] == [40, 30]
    (both,) = found.pooled
    points = [cell.differences[0].points for cell in found.cells]
    assert both.difference.points == pytest.approx(np.mean(points))
