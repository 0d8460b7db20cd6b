"""A study's runs as two files: nothing is lost, and the committed ones hold what the study says."""

from __future__ import annotations

import json
import logging
import math
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import synthetic_runs
from study_support import MadeUpRunner, Silent, opened

from doratune.cli.main import main
from doratune.errors import InputError
from doratune.records.archive import has_archive, restore_runs, write_archive
from doratune.records.files import read_jsonl, write_jsonl_atomic
from doratune.records.layout import RUNS_NAME
from doratune.records.run import RunRecord
from doratune.records.storage import read_record, read_study, write_config, write_record
from doratune.study.compare import remove_comparison
from doratune.study.plan_file import load_plan
from doratune.study.recomputed import check_against_archive
from doratune.study.study import run_study

STUDIES = Path(__file__).parents[3] / "docs/results/studies"
COMMITTED = sorted(path.parent for path in STUDIES.glob("*/study.json"))


def files(folder: Path) -> dict[str, bytes]:
    return {str(one.relative_to(folder)): one.read_bytes() for one in folder.rglob("*") if one.is_file()}


def answer(scores: list[float] | None, sizes: list[int], text: str | None = None) -> dict[str, Any]:
    per_byte = [one / size for one, size in zip(scores or [], sizes, strict=True)]
    return {"scores": scores, "scores_norm": None if scores is None else per_byte, "text": text}


ANSWERS = [
    answer([-12.5, -12.5, -0.1], [7, 9, 1]),  # a tie, and a number that float32 does not hold
    answer([0.0, -3.4028234663852886e38], [4, 1000]),
    answer([-1e-45, -21.65620994567871], [1, 59]),
    answer(None, [], "the answer is “a”\nor b"),
]


@pytest.fixture
def study(tmp_path: Path) -> Path:
    """Runs with scores of every kind, one of them with a validation, and one that is not finished."""
    folder = tmp_path / "study"
    for method in ("base", "lora", "dora"):
        answers = {"sample-boolq": [True, False, True, False]}
        run = synthetic_runs.write_run(folder / RUNS_NAME / method, method, answers)
        path = run / "predictions/sample-boolq.jsonl"
        answered = zip(read_jsonl(path), ANSWERS, strict=True)
        write_jsonl_atomic(path, [row | scored for row, scored in answered])
        if method != "base":
            config = read_record(run).config
            write_config(run, config)
            (run / "adapter").mkdir()
    validation = folder / RUNS_NAME / "dora/validation"
    shutil.copytree(folder / RUNS_NAME / "lora", validation)
    for name in ("metrics.jsonl", "config.yaml"):
        (validation / name).unlink()
    (folder / RUNS_NAME / "unfinished").mkdir()
    (folder / RUNS_NAME / "unfinished/config.yaml").touch()
    return folder


def test_everything_is_restored(study: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        write_archive(study, tmp_path / "archive")
    assert [record.getMessage() for record in caplog.records] == [
        f"not finished, so not archived: {study / 'runs/unfinished'}"
    ]
    assert len(restore_runs(tmp_path / "archive", tmp_path / "restored")) == 4
    shutil.rmtree(study / RUNS_NAME / "unfinished")
    before, after = files(study), files(tmp_path / "restored")
    assert before.keys() == after.keys()
    for name in before:
        if name.endswith(".jsonl"):  # to the last bit, and None where there was None
            assert read_jsonl(study / name) == read_jsonl(tmp_path / "restored" / name), name
        elif name.endswith("record.json"):
            parents = (study / name).parent, (tmp_path / "restored" / name).parent
            assert read_record(parents[0]) == read_record(parents[1])
        else:
            assert before[name] == after[name], name


def test_paths_inside_the_study_are_relative_in_its_archive(study: Path, tmp_path: Path) -> None:
    path = study / RUNS_NAME / "lora/record.json"
    record = json.loads(path.read_text())
    record["config"] |= {"output": str(path.parent), "data": str(study / "data/rows.json"), "note": "/else/x"}
    path.write_text(json.dumps(record))
    lines = read_jsonl(write_archive(study, tmp_path / "archive")[0])
    (config,) = (line["record"]["config"] for line in lines if line["run"] == "runs/lora")
    assert (config["output"], config["data"]) == ("runs/lora", "data/rows.json")
    assert config["note"] == "/else/x"
    assert not any(str(study) in json.dumps(line) for line in lines)


def test_the_same_runs_give_the_same_bytes(study: Path, tmp_path: Path) -> None:
    first, again = write_archive(study, tmp_path / "first"), write_archive(study, tmp_path / "again")
    assert [one.read_bytes() for one in first] == [one.read_bytes() for one in again]


def test_runs_that_are_there_are_left_alone(study: Path) -> None:
    write_archive(study, study)
    shutil.rmtree(study / RUNS_NAME / "lora")
    (study / RUNS_NAME / "dora/record.json").write_text("changed")
    shutil.rmtree(study / RUNS_NAME / "dora/validation")
    assert [run.name for run in restore_runs(study, study)] == ["lora"]
    assert (study / RUNS_NAME / "dora/record.json").read_text() == "changed"


def test_scores_that_cannot_be_kept_are_refused(study: Path, tmp_path: Path) -> None:
    path = study / RUNS_NAME / "lora/predictions/sample-boolq.jsonl"
    rows = read_jsonl(path)
    rows[0]["scores_norm"][0] += 1e-9
    write_jsonl_atomic(path, rows)
    with pytest.raises(InputError, match="per byte"):
        write_archive(study, tmp_path / "archive")
    assert not has_archive(tmp_path / "archive")


def test_an_archive_writes_nowhere_else(study: Path, tmp_path: Path) -> None:
    runs, _ = write_archive(study, tmp_path / "archive")
    lines = read_jsonl(runs)
    lines[0]["run"] = "runs/../../elsewhere"
    write_jsonl_atomic(runs, lines)
    with pytest.raises(InputError, match="outside"):
        restore_runs(tmp_path / "archive", tmp_path / "restored")
    assert not (tmp_path / "elsewhere").exists()


@pytest.mark.parametrize(
    "change",
    [
        {"run": None},
        {"metrics": 3},
        {"record": {}},
        {"record": None},
        {"diverged": {"message": 1}},
        {"diverged": {"message": "m", "seconds": 1.0, "config": {}}, "metrics": None},
    ],
)
def test_a_line_that_is_not_a_run_is_refused(study: Path, tmp_path: Path, change: dict[str, Any]) -> None:
    runs, _ = write_archive(study, tmp_path / "archive")
    lines = read_jsonl(runs)
    write_jsonl_atomic(runs, [lines[0] | change])
    with pytest.raises(InputError, match="not a run"):
        restore_runs(tmp_path / "archive", tmp_path / "restored")
    write_jsonl_atomic(runs, [{"run": lines[0]["run"]}])
    with pytest.raises(InputError, match="not a run"):
        restore_runs(tmp_path / "archive", tmp_path / "restored")


def test_a_damaged_archive_is_refused(study: Path, tmp_path: Path) -> None:
    runs, predictions = write_archive(study, tmp_path / "archive")
    whole = runs.read_bytes()
    for damaged in (whole[:-20], whole[:40] + whole[60:], b"not compressed"):
        runs.write_bytes(damaged)
        with pytest.raises(InputError, match="cannot be read"):
            restore_runs(tmp_path / "archive", tmp_path / "restored")
    predictions.write_bytes(b"PAR1")
    with pytest.raises(InputError, match="cannot be read"):
        restore_runs(tmp_path / "archive", tmp_path / "restored")
    with pytest.raises(InputError, match="no finished runs"):
        write_archive(tmp_path / "archive", tmp_path)


def test_a_study_continues_from_its_archive(tmp_path: Path) -> None:
    first = run_study(opened(tmp_path), MadeUpRunner(), Silent(), reproduce="x")
    folder = tmp_path / "study"
    write_archive(folder, folder)
    check_against_archive(first, folder)
    shutil.rmtree(folder / RUNS_NAME)
    runner = MadeUpRunner()
    again = run_study(opened(tmp_path, seeds=[0, 1, 2]), runner, Silent(), reproduce="x")
    assert {job.config.seed for job in runner.jobs if job.config} == {2}
    assert again.cells[0].base == first.cells[0].base
    with pytest.raises(InputError, match=r"answers of a run of the study are missing(.|\n)*--archive"):
        check_against_archive(again, folder)


@pytest.mark.parametrize("folder", COMMITTED, ids=lambda folder: folder.name)
def test_a_study_in_the_docs_follows_from_its_archive(folder: Path) -> None:
    """Every statistic of the committed study.json, computed again from the committed answers."""
    check_against_archive(read_study(folder / "study.json"), folder)


def test_there_are_studies_in_the_docs_with_their_plans() -> None:
    assert COMMITTED
    for folder in COMMITTED:
        plan = read_study(folder / "study.json").plan
        assert plan is not None
        again = load_plan(str(folder / "plan.yaml"))
        data = {"data": plan["data"]}  # from --data, and not at hand everywhere
        assert plan == again.model_dump(mode="json") | data


def test_report_writes_and_checks_the_archive(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run_study(opened(tmp_path), MadeUpRunner(), Silent(), reproduce="x")
    study, output = str(tmp_path / "study"), tmp_path / "results"
    assert main(["report", study, "--output", str(output), "--archive"]) == 0
    assert has_archive(output) and "runs.jsonl.gz" in capsys.readouterr().out
    assert main(["report", str(output), "--output", str(output)]) == 0
    record = json.loads((output / "study.json").read_text())
    record["cells"][0]["arms"][0]["runs"][0]["result"]["correct"] += 1
    (output / "study.json").write_text(json.dumps(record))
    assert main(["report", str(output), "--output", str(output)]) == 2
    assert "not those of its answers" in capsys.readouterr().err
    run = str(next((tmp_path / "study" / RUNS_NAME).glob("lora-*")))
    assert main(["report", run, "--output", str(output), "--archive"]) == 2


def test_a_comparison_that_starts_again_takes_nothing_from_its_archive(tmp_path: Path) -> None:
    run_study(opened(tmp_path), MadeUpRunner(), Silent(), reproduce="x")
    write_archive(tmp_path / "study", tmp_path / "study")
    remove_comparison(tmp_path / "study")
    assert not has_archive(tmp_path / "study")


def test_an_interrupted_restoration_is_completed(
    study: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_archive(study, tmp_path / "archive")
    whole = tmp_path / "whole"
    restore_runs(tmp_path / "archive", whole)

    class KilledError(Exception):
        pass

    def stop_at(number: int) -> Callable[..., None]:
        def write(run: Path, record: RunRecord) -> None:
            nonlocal number
            number -= 1
            if number < 0:
                raise KilledError
            write_record(run, record)

        return write

    for number in range(4):
        restored = tmp_path / f"restored-{number}"
        (restored / RUNS_NAME / "dora").mkdir(parents=True)
        (restored / RUNS_NAME / "dora/log.txt").touch()  # of a run that did not begin
        with monkeypatch.context() as patch, pytest.raises(KilledError):
            patch.setattr("doratune.records.archive.write_record", stop_at(number))
            restore_runs(tmp_path / "archive", restored)
        restore_runs(tmp_path / "archive", restored)
        assert files(restored) == files(whole)


@pytest.mark.parametrize(
    ("column", "values"),
    [
        ("row", ["first", "second"]),
        ("scores", [[None, -1.0], [None, -1.0]]),
        ("bytes", [[3], [3]]),
        ("bytes", [[], []]),
        ("scores", [[math.nan, -1.0], [math.nan, -1.0]]),
    ],
)
def test_predictions_of_another_shape_are_refused(
    study: Path, tmp_path: Path, column: str, values: list[Any]
) -> None:
    import pyarrow as pa
    from pyarrow import parquet

    _, path = write_archive(study, tmp_path / "archive")
    table = parquet.read_table(path)
    place = table.column_names.index(column)
    wrong = (values * table.num_rows)[: table.num_rows]
    parquet.write_table(table.set_column(place, column, pa.array(wrong)), path)
    with pytest.raises(InputError):
        restore_runs(tmp_path / "archive", tmp_path / "restored")


@pytest.mark.parametrize(
    "name",
    [
        ".",
        "",
        "/",
        "runs/\0",
        "data",
        "runs",
        "study.json",
        ".restoring",
        "runs/..",
        "runs/lora/data",
        "runs/.restoring",
    ],
)
def test_a_run_has_a_folder_of_its_own(study: Path, tmp_path: Path, name: str) -> None:
    runs, _ = write_archive(study, tmp_path / "archive")
    write_jsonl_atomic(runs, [line | {"run": name} for line in read_jsonl(runs)])
    (study / "data").mkdir()
    (study / "data/mine.txt").touch()
    before = files(study)
    with pytest.raises(InputError, match="outside"):
        restore_runs(tmp_path / "archive", study)
    assert files(study) == before


def test_what_an_older_version_restored_by_half_is_completed(study: Path, tmp_path: Path) -> None:
    write_archive(study, tmp_path / "archive")
    restored = tmp_path / "restored"
    restore_runs(tmp_path / "archive", restored)
    whole = files(restored)
    shutil.rmtree(restored / RUNS_NAME / "dora/validation")
    assert len(restore_runs(tmp_path / "archive", restored)) == 1
    assert files(restored) == whole
    shutil.rmtree(restored / RUNS_NAME / "dora/validation")
    path = restored / RUNS_NAME / "dora/record.json"
    record = json.loads(path.read_text())
    record["training"]["seconds"] += 1.0  # trained again here: the archived answers are of other weights
    path.write_text(json.dumps(record))
    assert restore_runs(tmp_path / "archive", restored) == []


def test_runs_are_restored_onto_another_disk(study: Path, tmp_path: Path) -> None:
    write_archive(study, tmp_path / "archive")
    (tmp_path / "disk").mkdir()
    (tmp_path / "restored").mkdir()
    (tmp_path / "restored" / RUNS_NAME).symlink_to(tmp_path / "disk")
    assert len(restore_runs(tmp_path / "archive", tmp_path / "restored")) == 4
    assert {one.name for one in (tmp_path / "disk").iterdir()} >= {"lora", "dora"}
