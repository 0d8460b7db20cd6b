from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from synthetic_runs import evaluation, flags, three_runs, write_run

from doratune.errors import InputError
from doratune.records.comparison import Comparison
from doratune.study.comparison import build_comparison


def build(*runs: Path) -> Comparison:
    return build_comparison(runs, title="t", reproduce="doratune report")


def change_record(run: Path, **changes: Any) -> None:
    path = run / "record.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def change_evaluation(run: Path, **changes: Any) -> None:
    path = run / "record.json"
    entry = json.loads(path.read_text())["evaluations"][0]
    change_record(run, evaluations=[entry | changes])


def pair(root: Path, **changes: Any) -> tuple[Path, Path]:
    """A LoRA and a DoRA run on one task; ``changes`` go into DoRA's record."""
    lora = write_run(root / "lora", "lora", {"sample-boolq": flags(6, 10)})
    return lora, write_run(root / "dora", "dora", {"sample-boolq": flags(6, 10, 2)}, **changes)


def test_three_runs_side_by_side(tmp_path: Path) -> None:
    found = build(*three_runs(tmp_path))
    assert [(arm.name, arm.run, arm.engine) for arm in found.arms] == [
        ("base", "base", None),
        ("lora", "lora", "doratune"),
        ("dora", "dora", "doratune"),
    ]
    assert found.arms[0].parameters is None
    assert found.arms[0].curve == []
    assert len(found.arms[1].curve) == 60  # the line with eval_loss only is no point of it
    boolq, winogrande = found.tasks
    assert boolq.arms["lora"].correct == 322
    # right rows: lora 0-321, dora 20-347
    assert boolq.difference is not None
    assert (boolq.difference.only_from, boolq.difference.only_to) == (20, 26)
    assert boolq.difference.points == pytest.approx(1.5)
    assert winogrande.difference is not None
    assert winogrande.difference.verdict == "dora is better"
    assert found.settings["rank"] == 16
    assert found.settings["model"] == "tiny"
    assert "output" not in found.settings
    assert found.notes == []


def test_a_single_run_has_no_difference(tmp_path: Path) -> None:
    found = build(write_run(tmp_path / "only", "lora", {"sample-boolq": flags(6, 10)}))
    assert found.arms[0].run == "only"
    assert found.tasks[0].difference is None


def test_a_missing_task_leaves_a_gap(tmp_path: Path) -> None:
    lora = write_run(tmp_path / "lora", "lora", {"a": flags(6, 10), "b": flags(5, 10)})
    dora = write_run(tmp_path / "dora", "dora", {"b": flags(7, 10)})
    first, second = build(lora, dora).tasks
    assert list(first.arms) == ["lora"]
    assert first.difference is None
    assert second.difference is not None


def test_the_difference_is_between_the_first_of_each(tmp_path: Path) -> None:
    lora, dora = pair(tmp_path)
    other = write_run(tmp_path / "more", "dora", {"sample-boolq": flags(9, 10)}, name="more")
    difference = build(other, lora, dora).tasks[0].difference
    assert difference is not None
    assert (difference.from_arm, difference.to_arm) == ("lora", "more")


def test_equal_names_give_way_to_directories(tmp_path: Path) -> None:
    first = write_run(tmp_path / "x" / "dora", "dora", {"a": flags(6, 10)})
    second = write_run(tmp_path / "y" / "dora", "dora", {"a": flags(6, 10)})
    assert [arm.name for arm in build(first, second).arms] == ["x/dora", "y/dora"]
    with pytest.raises(InputError, match="twice"):
        build(first, tmp_path / "y" / ".." / "x" / "dora")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"data": evaluation("a", [True])["data"] | {"sha256": "ef" * 32}}, "SHA-256"),
        ({"limit": 10}, "limit None, 10"),
        ({"metric": "accuracy_norm"}, "metric accuracy, accuracy_norm"),
        ({"protocol": "generate"}, "continuation/likelihood, continuation/generate"),
        ({"format": "instruct"}, "continuation/likelihood, instruct/likelihood"),
        ({"correct": 7}, "do not match the record"),
    ],
)
def test_other_rows_or_other_ways_are_refused(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    lora, dora = pair(tmp_path)
    change_evaluation(dora, **changes)
    with pytest.raises(InputError, match=message):
        build(lora, dora)


def test_predictions_of_other_rows_are_refused(tmp_path: Path) -> None:
    lora, dora = pair(tmp_path)
    path = dora / "predictions/sample-boolq.jsonl"
    path.write_text(path.read_text().replace('"row": 9', '"row": 90'))
    with pytest.raises(InputError, match="row 9"):
        build(lora, dora)


def test_another_base_model_is_refused(tmp_path: Path) -> None:
    model = {"name": "other", "source": "hub", "dtype": "float32", "parameters": 1}
    with pytest.raises(InputError, match="different base models"):
        build(*pair(tmp_path, model=model))


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda path: path.unlink(), "no finished run"),
        (lambda path: path.write_text('{"schema": "doratune.run",'), "line 1, column"),
        (lambda path: path.write_text("[]"), "does not read"),
        (lambda path: path.write_bytes(b"\xff\xfe"), "cannot be read"),
        (lambda path: change_record(path.parent, schema_version=2), "version 2"),
        (lambda path: change_record(path.parent, surprise=1), "surprise"),
        (lambda path: change_record(path.parent, seed="0"), "seed"),
    ],
)
def test_a_damaged_record_is_refused(tmp_path: Path, spoil: Any, message: str) -> None:
    lora, dora = pair(tmp_path)
    spoil(dora / "record.json")
    with pytest.raises(InputError, match=message):
        build(lora, dora)


def test_a_missing_run_and_missing_files_are_refused(tmp_path: Path) -> None:
    lora, dora = pair(tmp_path)
    with pytest.raises(InputError, match="no such run"):
        build(tmp_path / "nowhere")
    with pytest.raises(InputError, match="nothing to compare"):
        build()
    (dora / "predictions/sample-boolq.jsonl").write_text('{"row": 0\n')
    with pytest.raises(InputError, match="line 1, column"):
        build(lora, dora)
    (lora / "metrics.jsonl").unlink()
    with pytest.raises(InputError, match=r"missing(.|\n)*metrics.jsonl"):
        build(lora)


def test_a_diverged_loss_becomes_a_gap_in_the_curve(tmp_path: Path) -> None:
    run = write_run(tmp_path / "dora", "dora", {"a": flags(6, 10)})
    (run / "metrics.jsonl").write_text('{"step": 1, "loss": 2.5}\n{"step": 2, "loss": NaN}\n')
    assert build(run).arms[0].curve == [(1, 2.5), (2, None)]


def test_what_differs_is_said(tmp_path: Path) -> None:
    lora, dora = pair(tmp_path, seed=3)
    record = json.loads((dora / "record.json").read_text())
    config = record["config"] | {"learning_rate": 0.0001, "output": "elsewhere"}
    training = record["training"] | {"steps": 61}
    data = [record["data"][0] | {"sha256": "00" * 32}]
    environment = record["environment"] | {"gpu": "Made-up GPU", "packages": {}, "doratune": "0.2.0"}
    change_record(dora, config=config, training=training, data=data, environment=environment)
    found = build(lora, dora)
    assert found.notes == [
        "The runs differ in seed: lora 0, dora 3.",
        "The runs differ in learning_rate: lora 0.0002, dora 0.0001.",
        "The runs were not trained on the same rows.",
        "The runs took different numbers of steps: lora 60, dora 61.",
        "The runs were made on different machines: times and memory cannot be compared.",
        "The runs were made with different versions of packages.",
        "The runs were made with different versions of doratune.",
    ]
    assert "learning_rate" not in found.settings
