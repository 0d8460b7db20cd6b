from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
from synthetic_runs import evaluation, record, three_runs

from doratune.errors import InputError
from doratune.records.files import (
    read_comparison,
    read_jsonl,
    read_record,
    write_json_atomic,
    write_jsonl_atomic,
    write_text_atomic,
)
from doratune.records.run import RunRecord
from doratune.study.comparison import build_comparison


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


def test_comparison_round_trip(tmp_path: Path) -> None:
    built = build_comparison(three_runs(tmp_path), title="Ü", reproduce="x")
    path = tmp_path / "out" / "comparison.json"
    write_json_atomic(path, built.to_dict())
    assert read_comparison(path) == built
    write_json_atomic(path, built.to_dict() | {"schema_version": 2})
    with pytest.raises(InputError, match=r"version 2(.|\n)*version 1"):
        read_comparison(path)
    with pytest.raises(InputError, match=r"doratune\.comparison"):
        read_comparison(tmp_path / "base" / "record.json")


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
