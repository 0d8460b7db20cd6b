"""Which answers runs gave, counted from their predictions."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import synthetic_runs

from doratune.records.files import read_jsonl, write_jsonl_atomic
from doratune.records.study import MostGiven
from doratune.report.cautions import cautions
from doratune.report.view import view_of
from doratune.study.existing import record_of_runs
from doratune.study.given import most_given


def test_the_most_frequent_answer() -> None:
    assert most_given({0: "true", 1: "false", 2: "true", 3: None}) == MostGiven(answer="true", share=0.5)
    assert most_given({0: None, 1: None}) == MostGiven(answer=None, share=1.0)
    assert most_given(None) is None


def written(folder: Path, method: str, given: list[str | None], *, old: bool = False) -> Path:
    """A run with these answers; the right ones are a and b in turn."""
    flags = [one == "ab"[row % 2] for row, one in enumerate(given)]
    run = synthetic_runs.write_run(folder / method, method, {"boolq": flags})
    path = run / "predictions/boolq.jsonl"
    rows = [row | {"prediction": one} for row, one in zip(read_jsonl(path), given, strict=True)]
    write_jsonl_atomic(
        path, [{key: row[key] for key in row if not old or key != "prediction"} for row in rows]
    )
    return run


LORA = ["a"] * 30 + ["c"] * 10
"""Right on the even ones of the first 30 rows."""
OTHER_WRONG = ["a" if row % 2 == 0 else "c" for row in range(30)] + ["c"] * 10
"""Right on the same rows, with other wrong answers."""


@pytest.mark.parametrize(("dora", "same"), [(LORA, 40), (OTHER_WRONG, 25), ([None] * 40, 0)])
def test_a_difference_holds_how_many_answers_agree(tmp_path: Path, dora: list[str | None], same: int) -> None:
    runs = [written(tmp_path, "lora", [*LORA]), written(tmp_path, "dora", dora)]
    (cell,) = record_of_runs(runs, title="", reproduce="").cells
    assert cell.differences[0].seeds[0].same_answers == same
    assert cell.arms[0].runs[0].most_given == MostGiven(answer="a", share=0.75)
    if dora is OTHER_WRONG:
        assert cell.differences[0].points == 0, "accuracies do not tell these apart"


def test_runs_that_answer_alike_are_recorded_whatever_their_arms(tmp_path: Path) -> None:
    """Two arms of LoRA, one of DoRA and the base; right on the same rows is not enough."""
    given = {"base": LORA, "lora": LORA, "dora": OTHER_WRONG}
    runs = [written(tmp_path, method, [*answers]) for method, answers in given.items()]
    for name, answers, rate in (("other-lora", LORA, 1e-3), ("third-lora", OTHER_WRONG[::-1], 1e-4)):
        place = written(tmp_path / name, "lora", [*answers]).rename(tmp_path / f"{name}-run")
        path = place / "record.json"
        record = json.loads(path.read_text())
        record["config"]["learning_rate"] = rate
        path.write_text(json.dumps(record | {"name": name}))
        runs.append(place)
    record = record_of_runs(runs, title="", reproduce="")
    (cell,) = record.cells
    assert cell.alike == [["lora", "other-lora-run", "base"]]
    (line,) = cautions(view_of(record))
    assert line == (
        "boolq: LoRA, other-lora and the base model gave the same answer to every row, so nothing tells them "
        "apart there."
    )
    again = [written(tmp_path / "old", "lora", [*LORA], old=True), runs[0]]
    assert record_of_runs(again, title="", reproduce="").cells[0].alike == []


def test_predictions_without_answers_say_nothing(tmp_path: Path) -> None:
    runs = [written(tmp_path, "lora", [*LORA], old=True), written(tmp_path, "dora", [*LORA])]
    (cell,) = record_of_runs(runs, title="", reproduce="").cells
    assert cell.differences[0].seeds[0].same_answers is None
    assert cell.arms[0].runs[0].most_given is None
