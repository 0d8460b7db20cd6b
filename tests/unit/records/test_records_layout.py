from __future__ import annotations

import json
import math
import subprocess
import sys
from pathlib import Path

import pytest
import synthetic_study
from synthetic_runs import evaluation, record

from doratune.errors import InputError
from doratune.records.layout import (
    checkpoints,
    read_jsonl,
    read_record,
    read_study,
    refuse_output,
    write_config,
    write_json_atomic,
    write_jsonl_atomic,
    write_text_atomic,
)
from doratune.records.run import RunRecord

DOCS = Path(__file__).parents[3] / "docs/results/smollm2"


def test_record_round_trip_keeps_the_keys_of_the_file(tmp_path: Path) -> None:
    whole = record("dora", [evaluation("sample-boolq", [True, False])])
    parsed = RunRecord.model_validate(whole)
    write_json_atomic(tmp_path / "record.json", parsed.to_dict())
    written = json.loads((tmp_path / "record.json").read_text())
    assert written["schema"] == "doratune.run"
    assert written.keys() == whole.keys()
    assert written["evaluations"] == whole["evaluations"]
    assert read_record(tmp_path) == parsed


def test_records_from_before_speedups_were_recorded_are_read() -> None:
    whole = record("dora", [evaluation("sample-boolq", [True, False])])
    del whole["training"]["speedups"], whole["evaluations"][0]["speedups"]
    old = RunRecord.model_validate(whole)
    assert old.training is not None
    assert old.training.speedups is None and old.evaluations[0].speedups is None


def test_study_round_trip(tmp_path: Path) -> None:
    path = tmp_path / "study.json"
    made = synthetic_study.study()
    write_json_atomic(path, made.to_dict())
    assert read_study(path) == made
    assert json.loads(path.read_text())["cells"][0]["differences"][0]["from"] == "lora"
    write_json_atomic(path, made.to_dict() | {"schema_version": 3})
    with pytest.raises(InputError, match=r"version 3(.|\n)*version 2"):
        read_study(path)


def test_a_study_of_version_1_is_read_with_all_its_figures(tmp_path: Path) -> None:
    made = synthetic_study.study()
    old = made.to_dict() | {"schema_version": 1}
    del old["inputs"]
    for cell in old["cells"]:
        for arm in cell["arms"]:
            del arm["name"], arm["engine"]
    write_json_atomic(tmp_path / "study.json", old)
    assert read_study(tmp_path / "study.json") == made
    old["plan"]["settings"] = {"engine": "peft"}
    write_json_atomic(tmp_path / "study.json", old)
    arms = read_study(tmp_path / "study.json").cells[0].arms
    assert {arm.method: arm.engine for arm in arms if arm.method in ("dora", "full")} == {
        "dora": "peft",
        "full": None,
    }


def test_the_study_in_the_docs_is_read() -> None:
    written = json.loads((DOCS / "study.json").read_text())
    found = read_study(DOCS / "study.json").to_dict()
    assert found["schema_version"] == 2
    assert found["pooled"] == written["pooled"]
    trained = [run["training"] for cell in written["cells"] for arm in cell["arms"] for run in arm["runs"]]
    for training in trained:
        for name, missing in (
            ("speedups", None),
            ("skipped_steps", 0),
            ("changes", None),
            ("weights_checksum", None),
        ):
            training.setdefault(name, missing)  # was not recorded then
    for cell in written["cells"]:
        for seed in (seed for one in cell["differences"] for seed in one["seeds"]):
            seed.setdefault("same_answers", None)
        for run in (run for arm in cell["arms"] for run in arm["runs"]):
            run.setdefault("most_given", None)
            run["result"].setdefault("tied", None)
    for cell, before in zip(found["cells"], written["cells"], strict=True):
        assert cell["differences"] == before["differences"]
        assert [arm["runs"] for arm in cell["arms"]] == [arm["runs"] for arm in before["arms"]]
        assert [arm["name"] for arm in cell["arms"]] == ["lora", "dora"]


def test_a_loss_that_is_not_finite_becomes_null() -> None:
    whole = record("dora", [])
    whole["training"]["final_loss"] = math.nan
    training = RunRecord.model_validate(whole).training
    assert training is not None
    assert training.final_loss is None
    whole["training"]["seconds"] = math.inf
    with pytest.raises(ValueError, match="finite"):
        RunRecord.model_validate(whole)


def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    write_json_atomic(path, {"a": 1})
    with pytest.raises(ValueError, match="JSON compliant"):
        write_json_atomic(path, {"a": math.nan})
    with pytest.raises(UnicodeEncodeError):
        write_text_atomic(path, "\ud800")
    assert json.loads(path.read_text()) == {"a": 1}
    assert list(tmp_path.iterdir()) == [path]


def test_lines_round_trip(tmp_path: Path) -> None:
    rows = [{"row": 0, "text": "a\u2028b\nc"}, {"row": 1, "text": None}]
    write_jsonl_atomic(tmp_path / "a.jsonl", rows)
    assert read_jsonl(tmp_path / "a.jsonl") == rows
    (tmp_path / "a.jsonl").write_text('{"row": 0}\n\n[1]\n')
    with pytest.raises(InputError, match=r"line 3(.|\n)*list"):
        read_jsonl(tmp_path / "a.jsonl")


def test_checkpoints_are_sorted_by_step_not_by_name(tmp_path: Path) -> None:
    for name in ("checkpoint-10", "checkpoint-9", "checkpoint-100", "checkpoint-9.part", "other-3"):
        (tmp_path / "checkpoints" / name).mkdir(parents=True)
    assert [(step, path.name) for step, path in checkpoints(tmp_path).items()] == [
        (9, "checkpoint-9"),
        (10, "checkpoint-10"),
        (100, "checkpoint-100"),
    ]
    assert checkpoints(tmp_path / "none") == {}


def test_output_that_can_be_written_to_is_taken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "there").mkdir()
    (tmp_path / "link").symlink_to("there")
    write_config(tmp_path / "run", {})
    names = (
        "",
        ".",
        "new",
        "there",
        "there/new/newer",
        "link",
        "link/new",
        "там/　 ñ",
        "n" * 255,
        "adapter",
        "run/evaluations/adapter",
        tmp_path / "x",
    )
    for name in names:
        refuse_output(Path(name))
    assert sorted(one.name for one in tmp_path.iterdir()) == ["link", "run", "there"], "nothing is made"


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("file", "is a file"),
        ("file/below/it", "is a file"),
        ("nowhere", "leads nowhere"),
        ("nowhere/below", "leads nowhere"),
        ("circle/below", "leads nowhere"),
        ("n" * 256, "too long"),
        ("new/" + "ñ" * 128, "too long"),
        ("new/" * 1000, "too long"),
        ("run/adapter", "among a run's own files"),
        ("run/checkpoints/new/newer", "among a run's own files"),
        ("run/evaluations/../model", "among a run's own files"),
        ("link", "among a run's own files"),
        ("a\nb", "'\\\\n'"),
        ("a\0b", "'\\\\x00'"),
        ("a\udcffb", "'\\\\udcff'"),
    ],
)
def test_output_that_cannot_be_made_is_refused(
    name: str, said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").touch()
    (tmp_path / "nowhere").symlink_to("gone")
    (tmp_path / "circle").symlink_to("circle")
    write_config(tmp_path / "run", {})
    (tmp_path / "run" / "predictions").mkdir()
    (tmp_path / "link").symlink_to("run/predictions")
    with pytest.raises(InputError, match=said) as caught:
        refuse_output(Path(name))
    assert "--output" in caught.value.message and len(caught.value.message.splitlines()) < 5
    assert "\0" not in caught.value.message


@pytest.mark.parametrize("name", ["shut", "shut/new"])
def test_output_without_permission_is_refused(name: str, tmp_path: Path) -> None:
    """Asked in a process of a user who may not write there: root may, anywhere."""
    (tmp_path / "shut").mkdir(mode=0o555)
    tmp_path.chmod(0o755)
    code = (
        "import os, pathlib, sys\n"
        "from doratune.errors import InputError\n"
        "from doratune.records.layout import refuse_output\n"
        "if os.getuid() == 0: os.setgroups([]); os.setgid(65534); os.setuid(65534)\n"
        "try: refuse_output(pathlib.Path(sys.argv[1]))\n"
        "except InputError as error: print(error.message)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, name], cwd=tmp_path, capture_output=True, text=True, check=True
    )
    assert "may not be written to" in done.stdout and "got: shut\n" in done.stdout


def test_a_long_name_leaves_room_for_the_temporary_file(tmp_path: Path) -> None:
    path = tmp_path / ("ñ" * 120 + ".json")
    write_text_atomic(path, "x")
    assert path.read_text() == "x" and list(tmp_path.iterdir()) == [path]
