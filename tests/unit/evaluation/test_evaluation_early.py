"""What an evaluation refuses before a model is loaded."""

from __future__ import annotations

from pathlib import Path

import pytest

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
