"""What an evaluation refuses before a model is loaded."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from doratune.errors import InputError
from doratune.evaluation.config import EvalConfig
from doratune.evaluation.early import refuse_early


def test_one_process_instead_of_several_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "no")
    monkeypatch.setenv("MASTER_ADDR", "127.0.0.1")
    with pytest.raises(InputError, match="accelerate launch started one process"):
        refuse_early(EvalConfig(target="smollm2-135m", task=["sample-boolq"]))


def test_a_task_without_rows_is_refused_where_no_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="the test rows of multiple-choice are in a file") as raised:
        refuse_early(EvalConfig(target="smollm2-135m", task=["multiple-choice"]))
    assert raised.value.where == "--data"
    rows = tmp_path / "test.jsonl"
    rows.touch()
    refuse_early(EvalConfig(target="smollm2-135m", task=["multiple-choice"], data=rows))
    refuse_early(EvalConfig(target="smollm2-135m", task=["sample-boolq", "arc-easy"]))


def test_a_split_that_the_task_does_not_name_is_refused(tmp_path: Path) -> None:
    row = {"stem": "{x}", "options": ["a", "b"], "answer": "c", "answers": ["1", "2"]}
    hub = {"path": "some/rows", "splits": {"train": "train"}}
    path = tmp_path / "mine.yaml"
    path.write_text(yaml.safe_dump({"name": "mine", "layout": "choices", "row": row, "hub": hub}))
    with pytest.raises(InputError, match="names no test split"):
        refuse_early(EvalConfig(target="smollm2-135m", task=[str(path)]))
