from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from synthetic_runs import evaluation, flags, text, three_runs, write_run
from synthetic_runs import record as synthetic_record

from doratune.cli.main import main
from doratune.errors import InputError
from doratune.records.differences import notes_on_differences
from doratune.records.run import RunRecord
from doratune.records.study import StudyCell, StudyRecord
from doratune.stats.seeds import mcnemar_p
from doratune.study.existing import record_of_runs


def build(*runs: Path) -> StudyRecord:
    return record_of_runs(runs, title="t", reproduce="doratune report")


def names(cell: StudyCell) -> list[str]:
    return [arm.name for arm in cell.arms]


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
    boolq, winogrande = found.cells
    assert [(arm.name, arm.method, arm.engine, arm.learning_rate) for arm in boolq.arms] == [
        ("lora", "lora", "doratune", 0.0002),
        ("dora", "dora", "doratune", 0.0002),
    ]
    lora = boolq.arms[0]
    assert [(run.run, run.seed, run.result.correct) for run in lora.runs] == [("lora", 0, 322)]
    assert len(lora.runs[0].curve) == 60  # the line with eval_loss only is not part of it
    assert lora.trials == [] and boolq.validation is None
    assert boolq.base is not None and boolq.base.correct == 205
    assert (boolq.rank, boolq.train and boolq.train.rows) == (16, 2000)
    # right rows: lora 0-321, dora 20-347
    (difference,) = boolq.differences
    (seed,) = difference.seeds
    assert (seed.seed, seed.only_from, seed.only_to) == (0, 20, 26)
    assert difference.points == pytest.approx(1.5)
    assert difference.p_value == seed.p_value == pytest.approx(mcnemar_p(20, 26))
    assert winogrande.differences[0].outcome == "better"
    assert winogrande.differences[0].verdict.startswith("DoRA is more accurate than LoRA")
    assert found.pooled[0].difference.points == pytest.approx((1.5 + 13) / 2)
    assert (found.question, found.plan, found.inputs, found.pending) == (None, None, {}, [])
    assert found.settings["rank"] == 16
    assert found.settings["model"] == "tiny"
    assert "output" not in found.settings
    assert found.notes == []


def test_a_report_is_named_after_what_it_shows(tmp_path: Path) -> None:
    runs = three_runs(tmp_path)
    by_method = {json.loads((run / "record.json").read_text())["method"]: run for run in runs}
    for methods, title in {
        ("lora", "dora"): "LoRA and DoRA compared",
        ("dora",): "Evaluation of DoRA",
        ("base",): "Evaluation of the base model",
    }.items():
        shown = [by_method[method] for method in methods]
        assert record_of_runs(shown, title=None, reproduce="").title == title
    assert record_of_runs(runs, title="own", reproduce="").title == "own"


def test_a_single_run_has_no_difference(tmp_path: Path) -> None:
    (cell,) = build(write_run(tmp_path / "only", "lora", {"sample-boolq": flags(6, 10)})).cells
    assert cell.arms[0].runs[0].run == "only"
    assert cell.differences == [] and cell.base is None


def test_a_base_model_alone_is_reported(tmp_path: Path) -> None:
    (cell,) = build(write_run(tmp_path / "base", "base", {"sample-boolq": flags(6, 10)})).cells
    assert cell.base is not None and cell.base.correct == 6
    assert (cell.arms, cell.differences, cell.train, cell.rank) == ([], [], None, None)


def test_two_evaluations_of_the_base_are_refused(tmp_path: Path) -> None:
    runs = [write_run(tmp_path / name, "base", {"a": flags(6, 10)}) for name in ("x", "y")]
    with pytest.raises(InputError, match="the base model was evaluated on a in two runs"):
        build(*runs)


def test_a_run_without_an_evaluation_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"was not evaluated(.|\n)*doratune eval"):
        build(write_run(tmp_path / "lora", "lora", {}))
    with pytest.raises(InputError, match=r"scored only the built-in text(.|\n)*doratune eval"):
        build(write_run(tmp_path / "dora", "dora", {}, text=text([50.0])))


def test_a_missing_task_leaves_a_gap(tmp_path: Path) -> None:
    lora = write_run(tmp_path / "lora", "lora", {"a": flags(6, 10), "b": flags(5, 10)})
    dora = write_run(tmp_path / "dora", "dora", {"b": flags(7, 10)})
    first, second = build(lora, dora).cells
    assert names(first) == ["lora"]
    assert first.differences == []
    assert len(second.differences) == 1


def test_the_difference_is_between_the_first_of_each(tmp_path: Path) -> None:
    lora, dora = pair(tmp_path)
    other = write_run(tmp_path / "more", "dora", {"sample-boolq": flags(9, 10)}, name="more")
    record = build(other, lora, dora)
    (difference,) = record.cells[0].differences
    assert names(record.cells[0]) == ["more", "lora", "dora"]
    assert (difference.from_arm, difference.to_arm) == ("lora", "more")
    assert record.notes == ["Of more, dora, which are of one method, only more is in the differences."]


def seeds(root: Path, method: str, first: int, count: int, **changes: Any) -> list[Path]:
    return [
        write_run(root / f"{method}-{seed}", method, {"a": flags(60 + seed, 100, seed)}, seed=seed, **changes)
        for seed in range(first, first + count)
    ]


def test_runs_that_differ_in_their_seed_only_are_one_arm(tmp_path: Path) -> None:
    runs = [*seeds(tmp_path, "dora", 0, 3), *reversed(seeds(tmp_path, "lora", 0, 3))]
    record = build(*runs)
    (cell,) = record.cells
    assert names(cell) == ["dora", "lora"]
    assert [[run.run for run in arm.runs] for arm in cell.arms] == [
        ["dora-0", "dora-1", "dora-2"],
        ["lora-0", "lora-1", "lora-2"],
    ]
    assert cell.arms[0].mean == pytest.approx(0.61)
    assert [one.seed for one in cell.differences[0].seeds] == [0, 1, 2]
    assert "one seed" not in cell.differences[0].verdict
    assert record.notes == []


def test_settings_without_effect_do_not_split_an_arm(tmp_path: Path) -> None:
    first, second = seeds(tmp_path, "lora", 0, 2)
    config = json.loads((second / "record.json").read_text())["config"]
    change_record(second, config=config | {"keep_checkpoints": 9, "save_steps": 7})
    (arm,) = build(first, second).cells[0].arms
    assert [run.seed for run in arm.runs] == [0, 1]


def test_runs_of_a_method_whose_file_changed_are_not_seeds_of_one_arm(tmp_path: Path) -> None:
    """The path of the file does not matter, nor what it is called in sentences."""
    lora = seeds(tmp_path, "lora", 0, 3)
    mine = {"name": "mine", "title": "T", "description": "d", "peft": "LoraConfig", "merges": "base"}
    for run, path, more in zip(
        lora,
        ("mine.yaml", "./mine.yaml", "mine.yaml"),
        ({}, {"title": "Mine"}, {"optimizer": {"name": "lora-plus", "ratio": 4.0}}),
        strict=True,
    ):
        config = json.loads((run / "record.json").read_text())["config"] | {"method": path}
        change_record(run, method="mine", name=run.name, config=config, definition=mine | more)
    record = build(*lora)
    assert [[run.seed for run in arm.runs] for arm in record.cells[0].arms] == [[0, 1], [2]]
    assert "The file of the method mine was not the same for lora-0 and lora-2." in record.notes


def test_a_difference_is_over_the_seeds_that_both_have(tmp_path: Path) -> None:
    record = build(*seeds(tmp_path, "lora", 0, 3), *seeds(tmp_path, "dora", 1, 3))
    assert [one.seed for one in record.cells[0].differences[0].seeds] == [1, 2]
    assert any("LoRA 0, 1, 2; DoRA 1, 2, 3" in note for note in record.notes)
    assert not any("differ in seed" in one for one in record.notes) and "seed" not in record.differing


def test_single_runs_of_different_seeds_are_compared_and_it_is_said(tmp_path: Path) -> None:
    record = build(*seeds(tmp_path, "lora", 0, 1), *seeds(tmp_path, "dora", 1, 1))
    (one,) = record.cells[0].differences[0].seeds
    assert one.seed is None
    assert record.notes == ["The runs differ in seed: LoRA 0, DoRA 1."]
    assert record.differing == {"seed": {"lora": 0, "dora": 1}}


def test_other_settings_or_a_repeated_seed_form_separate_arms(tmp_path: Path) -> None:
    lora = seeds(tmp_path, "lora", 0, 2)
    other = write_run(tmp_path / "slow", "lora", {"a": flags(50, 100)}, name="slow", seed=1)
    config = json.loads((other / "record.json").read_text())["config"]
    change_record(other, config=config | {"learning_rate": 1e-5})
    record = build(*lora, other)
    assert [(arm.name, [run.seed for run in arm.runs]) for arm in record.cells[0].arms] == [
        ("lora", [0, 1]),
        ("slow", [1]),
    ]
    again = write_run(tmp_path / "again", "lora", {"a": flags(50, 100)}, name="again", seed=1)
    record = build(*lora, again)
    assert names(record.cells[0]) == ["lora-0", "lora-1", "again"]


def test_equal_names_are_replaced_by_directories(tmp_path: Path) -> None:
    first = write_run(tmp_path / "x" / "dora", "dora", {"a": flags(6, 10)})
    second = write_run(tmp_path / "y" / "dora", "dora", {"a": flags(6, 10)})
    assert names(build(first, second).cells[0]) == ["x/dora", "y/dora"]
    with pytest.raises(InputError, match="twice"):
        build(first, tmp_path / "y" / ".." / "x" / "dora")


def test_an_adapter_that_was_trained_elsewhere_is_an_arm(tmp_path: Path) -> None:
    run = write_run(
        tmp_path / "dora", "dora", {"a": flags(6, 10)}, training=None, config={"format": "instruct"}
    )
    (arm,) = build(run).cells[0].arms
    assert (arm.learning_rate, arm.engine) == (None, None)
    assert (arm.runs[0].training, arm.runs[0].curve) == (None, [])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"data": evaluation("a", [True])["data"] | {"sha256": "ef" * 32}}, "SHA-256"),
        ({"limit": 10}, "eval_rows None, 10"),
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


def test_different_tasks_of_one_name_are_refused(tmp_path: Path) -> None:
    lora, dora = pair(tmp_path)
    data = evaluation("sample-boolq", [True] * 10)["data"]
    for run, layout, licence in ((lora, "one", "MIT"), (dora, "one", "ours")):
        change_evaluation(run, data={**data, "definition": {"layout": layout, "licence": licence}})
    assert build(lora, dora).cells, "a licence changes no answer"
    change_evaluation(dora, data={**data, "definition": {"layout": "two"}})
    with pytest.raises(InputError, match="different tasks of the name sample-boolq"):
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


def test_one_base_model_under_two_names_is_no_difference(tmp_path: Path) -> None:
    lora, dora = pair(tmp_path)
    record = json.loads((dora / "record.json").read_text())
    change_record(dora, model=record["model"] | {"name": "./elsewhere", "fingerprint": "v2:00:00"})
    change_record(lora, model=record["model"] | {"fingerprint": "v2:00:00"})
    assert not any(note.startswith("The runs differ") for note in build(lora, dora).notes)


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
    assert build(run).cells[0].arms[0].runs[0].curve == [(1, 2.5), (2, None)]


def test_differences_are_noted(tmp_path: Path) -> None:
    lora, dora = pair(tmp_path, seed=3)
    record = json.loads((dora / "record.json").read_text())
    config = record["config"] | {"learning_rate": 0.0001, "output": "elsewhere"}
    training = record["training"] | {"steps": 61}
    data = [record["data"][0] | {"sha256": "00" * 32}]
    environment = record["environment"] | {"gpu": "Made-up GPU", "packages": {}, "doratune": "0.2.0"}
    change_record(dora, config=config, training=training, data=data, environment=environment)
    found = build(lora, dora)
    assert found.notes == [
        "The runs differ in seed: LoRA 0, DoRA 3.",
        "The runs differ in learning_rate: LoRA 0.0002, DoRA 0.0001.",
        "The runs were not trained on the same rows.",
        "The runs took different numbers of steps: LoRA 60, DoRA 61.",
        "The runs were made on different machines: times and memory cannot be compared.",
        "The runs were made with different versions of packages.",
        "The runs were made with different versions of doratune.",
    ]
    assert "learning_rate" not in found.settings


def test_a_report_is_not_written_over_runs_or_over_a_study_with_its_runs(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    runs = [str(run) for run in pair(out / "runs")]
    assert main(["report", *runs, "--output", runs[0]]) == 2
    assert "the output folder holds a run" in capsys.readouterr().err
    (out / "study.json").write_text("kept")
    assert main(["report", *runs, "--output", str(out)]) == 2
    assert "holds a study or comparison with its runs" in capsys.readouterr().err
    assert (out / "study.json").read_text() == "kept"
    assert not (out / "report.html").exists()
    assert main(["report", *runs, "--output", str(tmp_path / "report")]) == 0
    assert main(["report", *runs, "--output", str(tmp_path / "report")]) == 0


def test_types_of_weights_are_compared_between_trained_runs_only(tmp_path: Path) -> None:
    base, lora, dora = three_runs(tmp_path)
    for run in (lora, dora):
        model = json.loads((run / "record.json").read_text())["model"]
        change_record(run, model=model | {"dtype": "bfloat16"})
    assert build(base, lora, dora).notes == []
    change_record(dora, model=model | {"dtype": "float32"})
    (note,) = build(base, lora, dora).notes
    assert note == "The base weights were not of the same type in training: LoRA bfloat16, DoRA float32."


def test_evaluations_in_different_types_and_many_ties_are_said(tmp_path: Path) -> None:
    lora, dora = pair(tmp_path)
    scored = {"weights": "adapter", "merged": False, "merge_difference": None, "dtype": "bfloat16"}
    change_evaluation(dora, scored=scored)
    path = lora / "predictions/sample-boolq.jsonl"
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    tied = next(row["row"] for row in rows if row["correct"])  # counted as right before ties were
    rows = [row | {"scores": [-1.0, -1.0 if row["row"] == tied else -2.0]} for row in rows]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    found = build(lora, dora)
    assert found.notes == [
        "The answers to sample-boolq were not all computed in the same type: "
        "lora in a type that is not recorded; dora in bfloat16."
    ]
    result = found.cells[0].arms[0].runs[0].result
    assert (result.correct, result.tied, result.accuracy) == (5, 1, pytest.approx(0.55))
    assert main(["report", str(lora), str(dora), "--output", str(tmp_path / "out")]) == 0
    page = (tmp_path / "out/report.md").read_text()
    assert "LoRA: 1 of 10" in page and "1 tied" in page and "sign-flip" in page


def test_a_setting_that_older_runs_lack_does_not_differ_at_its_default() -> None:
    def run(method: str, skipped: int, **settings: str) -> RunRecord:
        made = synthetic_record(method, [])
        made["config"].update(settings)
        made["training"]["skipped_steps"] = skipped
        return RunRecord.model_validate(made)

    old, new = run("lora", 0), run("dora", 0, on_nonfinite="stop")
    notes = notes_on_differences({"old": old, "new": new})
    assert not any("on_nonfinite" in note or "left out" in note for note in notes)
    skips = notes_on_differences({"old": old, "new": run("dora", 2, on_nonfinite="skip")})
    assert any("on_nonfinite: old None, new skip" in note for note in skips)
    assert any("left out" in note and "old 0, new 2" in note for note in skips)


def test_an_arm_of_another_rank_leaves_the_correction_of_the_others_as_it_is(tmp_path: Path) -> None:
    def write(name: str, rank: int, tasks: tuple[str, ...]) -> Path:
        return write_run(
            tmp_path / name,
            name.split("-")[0],
            {task: flags(80 + 6 * (name == "dora"), 100) for task in tasks},
            config={"rank": rank},
        )

    two = [write(name, 16, ("a", "b")) for name in ("lora", "dora")]
    alone = build(*two)
    with_other = build(*two, write("pissa", 8, ("a",)))
    assert [cell.rank for cell in alone.cells] == [16, 16]
    assert len({cell.rank for cell in with_other.cells}) == 1
    found = [
        [one for cell in record.cells for one in cell.differences if one.to_arm == "dora"]
        for record in (alone, with_other)
    ]
    assert [one.p_adjusted for one in found[0]] == [one.p_adjusted for one in found[1]]
    assert found[0][0].p_adjusted > found[0][0].p_value
    assert with_other.pooled[0].difference == alone.pooled[0].difference


def test_seeds_are_one_arm_however_their_model_and_files_are_named(tmp_path: Path) -> None:
    first, second = seeds(tmp_path, "lora", 0, 2)
    config = json.loads((second / "record.json").read_text())["config"]
    elsewhere = {"model": "/elsewhere/tiny", "task": ["/elsewhere/a.yaml"], "data": "/elsewhere/a.json"}
    change_record(second, config=config | elsewhere)
    (arm,) = build(first, second).cells[0].arms
    assert [run.seed for run in arm.runs] == [0, 1]
