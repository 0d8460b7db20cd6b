"""A study.json is refused if its results do not follow from the archived answers."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from pyarrow import parquet
from study_support import MadeUpRunner, Silent, opened

from doratune import __version__
from doratune.cli.main import main
from doratune.errors import DoratuneError, InputError
from doratune.records.archive import PREDICTIONS_FILE, RUNS_FILE, write_archive
from doratune.records.files import read_jsonl, write_jsonl_atomic
from doratune.records.layout import STUDY_NAME
from doratune.records.storage import read_study
from doratune.records.study import StudyRecord
from doratune.report.files import write_report
from doratune.study.job import Job, Wanted
from doratune.study.recomputed import check_against_archive, computed_again, refuse_differences
from doratune.study.study import run_study


class ScoredRunner(MadeUpRunner):
    """Its answers have scores, which depend on the run."""

    def _evaluate(self, job: Job, wanted: Wanted) -> None:
        super()._evaluate(job, wanted)
        folder = wanted.config.output
        assert folder is not None
        path = max((folder / "predictions").glob("*.jsonl"), key=lambda one: wanted.task in one.name)
        shift = len(job.method) + (job.config.seed + 100 * job.config.learning_rate if job.config else 0)
        rows = []
        for one in read_jsonl(path):
            scores = [-1.0 - 0.01 * one["row"], -2.0 - 0.1 * shift]
            scores = scores if one["correct"] else scores[::-1]
            given = "true" if one["correct"] else "false"
            scored = {"scores": scores, "scores_norm": [score / 4 for score in scores]}
            credit = {"tied": 1, "credit": float(one["correct"])}
            rows.append(one | credit | scored | {"answer": "true", "right": 0, "prediction": given})
        write_jsonl_atomic(path, rows)


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The archive of a study that searched rates, shares one and measures what is kept."""
    folder = tmp_path_factory.mktemp("written")
    study = opened(folder, also_test=["sample-winogrande"], tasks=TASKS)
    record = run_study(study, ScoredRunner(), Silent(), reproduce="x")
    assert record.forgetting and record.pooled and record.cells[0].same_rate and record.cells[0].measures
    write_archive(folder / "study", folder / "archive")
    write_report(record, folder / "archive")
    return folder / "archive"


TASKS = [
    {"train": task, "rows": 32, "validation_rows": 20, "eval_rows": 40}
    for task in ("sample-boolq", "sample-hellaswag")
]


@pytest.fixture
def archive(written: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(written, tmp_path / "archive"))


@pytest.fixture(scope="module")
def results(written: Path) -> tuple[StudyRecord, StudyRecord]:
    """What the study says, and the same computed again."""
    said = read_study(written / STUDY_NAME)
    return said, computed_again(said, written.parent / "study")


def check(folder: Path) -> None:
    check_against_archive(read_study(folder / STUDY_NAME), folder)


def test_what_was_written_is_accepted(
    archive: Path, results: tuple[StudyRecord, StudyRecord], capsys: pytest.CaptureFixture[str]
) -> None:
    check(archive)
    refuse_differences(*results)
    path = archive / STUDY_NAME
    path.write_text(path.read_text().replace('"mean": 0.', '"mean": 0.9', 1))
    assert main(["report", str(archive), "--output", str(archive / "report")]) == 2
    assert "not those of its answers" in capsys.readouterr().err and not (archive / "report").exists()


@pytest.mark.parametrize(
    ("place", "value"),
    [
        ("cells.1.arms.1.mean", 0.9),
        ("cells.0.arms.0.runs.1.result.correct", 39),
        ("cells.0.arms.0.trials.0.accuracy", 0.75),
        ("cells.0.differences.0.p_value", 0.04),
        ("cells.0.differences.0.outcome", "better"),
        ("cells.0.differences.0.verdict", "DoRA is more accurate than LoRA"),
        ("cells.0.differences.0.interval.0", 0.5),
        ("cells.0.same_rate.0.to_mean", 0.9),
        ("cells.0.measures.0.difference.mean", -0.5),
        ("cells.0.base.accuracy", 0.1),
        ("cells.0.measures", []),
        ("cells.0.arms.0.measures", {}),
        ("pooled.0.difference.points", 50.0),
        ("forgetting.0.arms.1.value.mean", 0.95),
    ],
)
def test_an_edited_study_is_refused(results: tuple[StudyRecord, StudyRecord], place: str, value: Any) -> None:
    said, found = results
    record = said.to_dict()
    record["environment"]["doratune"] = __version__  # of another, sentences are not compared
    *within, last = [int(one) if one.isdecimal() else one for one in place.split(".")]
    held: Any = record
    for key in within:
        held = held[key]
    assert held[last] != value
    held[last] = value
    edited = StudyRecord.model_validate_json(json.dumps(record), strict=True)
    with pytest.raises(InputError, match=f"not those of its answers(.|\n)*{place}"):
        refuse_differences(edited, found)


def reversed_scores(row: dict[str, Any]) -> dict[str, Any]:
    return row | {"scores": row["scores"][::-1]}


def doubled_scores(row: dict[str, Any]) -> dict[str, Any]:
    return row | {"scores": [2 * score for score in row["scores"]]}


def reversed_answers_elsewhere(row: dict[str, Any]) -> dict[str, Any]:
    """Neighbours among the rows of also_test change places."""
    return row | {"row": row["row"] ^ 1} if "winogrande" in row["predictions"] else row


@pytest.mark.parametrize(
    ("edit", "told"),
    [
        (reversed_scores, "does not follow from its scores(.|\n)*row 0"),
        (doubled_scores, "not those of its answers"),
        (reversed_answers_elsewhere, "not those of its answers(.|\n)*forgetting"),
    ],
)
def test_edited_answers_are_refused(
    archive: Path, edit: Callable[[dict[str, Any]], dict[str, Any]], told: str
) -> None:
    path = archive / PREDICTIONS_FILE
    table = parquet.read_table(path)
    rows = [
        edit(row) if not row["run"].startswith("runs/base") or edit is reversed_scores else row
        for row in table.to_pylist()
    ]
    parquet.write_table(table.from_pylist(rows, schema=table.schema), path)
    with pytest.raises(InputError, match=told):
        check(archive)


@pytest.mark.parametrize("name", [RUNS_FILE, PREDICTIONS_FILE])
def test_a_damaged_or_missing_part_is_refused(
    archive: Path, name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    (archive / name).write_text("hello")
    assert main(["report", str(archive), "--output", str(archive)]) == 2
    told = capsys.readouterr().err
    assert "cannot be read" in told and name in told
    (archive / name).unlink()
    assert main(["report", str(archive), "--output", str(archive)]) == 2
    told = capsys.readouterr().err
    assert "part of the study's archive is missing" in told and name in told


def test_an_archive_is_replaced_only_by_one_with_all_its_runs(
    written: Path,
    archive: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    before = {path.name: path.read_bytes() for path in archive.iterdir()}
    study = written.parent / "study"
    write_report(read_study(written / STUDY_NAME), study)
    other = Path(shutil.copytree(study, tmp_path / "other"))
    shutil.rmtree(next((other / "runs").glob("lora-*")))
    for given, told in (
        ([other], "runs that this report lacks"),
        ([other, "--archive"], "runs that this report lacks"),
        ([next((study / "runs").glob("lora-*"))], "runs that this report lacks"),
        ([study], "give --archive"),
    ):
        assert main(["report", *map(str, given), "--output", str(archive)]) == 2
        assert told in capsys.readouterr().err
        assert {path.name: path.read_bytes() for path in archive.iterdir()} == before
    (archive / RUNS_FILE).write_text("hello")
    assert main(["report", str(study), "--output", str(archive), "--archive"]) == 2
    (archive / RUNS_FILE).write_bytes(before[RUNS_FILE])
    monkeypatch.setattr("doratune.cli.report.publish", lambda *args, **kwargs: None)  # draws for seconds
    assert main(["report", str(study), "--output", str(archive), "--archive"]) == 0
    check(archive)


def test_another_versions_words_are_not_compared(results: tuple[StudyRecord, StudyRecord]) -> None:
    said, found = results
    record = said.to_dict()
    record["environment"]["doratune"] = "0.1.9"
    record["cells"][0]["differences"][0]["verdict"] = "in other words"
    refuse_differences(StudyRecord.model_validate_json(json.dumps(record), strict=True), found)
    record["cells"][0]["differences"][0]["p_value"] = 0.04
    with pytest.raises(InputError, match="p_value"):
        refuse_differences(StudyRecord.model_validate_json(json.dumps(record), strict=True), found)


def test_a_study_that_was_resumed_under_another_name_of_its_folder_is_accepted(tmp_path: Path) -> None:
    """The paths in the settings of one arm's seeds are then of two folders."""
    (tmp_path / "link").symlink_to(tmp_path, target_is_directory=True)

    def of_seed_1(job: Job) -> bool:
        return job.config is not None and job.config.seed == 1

    with pytest.raises(DoratuneError):
        run_study(opened(tmp_path, tasks=TASKS), ScoredRunner(fails=of_seed_1), Silent(), reproduce="x")
    study = opened(tmp_path / "link", tasks=TASKS)
    record = run_study(study, ScoredRunner(), Silent(), reproduce="x")
    records = (tmp_path / "study/runs").glob("?ora-*/record.json")
    outputs = [json.loads(one.read_text())["config"]["output"] for one in records]
    assert len({one.partition("/study/")[0] for one in outputs}) == 2
    refuse_differences(record, computed_again(record, tmp_path / "study"))


def test_an_archive_is_not_written_of_an_edited_record(
    written: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    study = Path(shutil.copytree(written.parent / "study", tmp_path / "study"))
    path = study / STUDY_NAME
    path.write_text(path.read_text().replace('"mean": 0.', '"mean": 0.9', 1))
    assert main(["report", str(study), "--output", str(tmp_path / "archive"), "--archive"]) == 2
    told = capsys.readouterr().err
    assert "not those of its answers" in told and "repeat the command" in told
    assert not (tmp_path / "archive").exists()
