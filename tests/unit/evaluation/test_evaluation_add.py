"""Two processes that evaluate one run: neither loses what the other found."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path

import pytest
from synthetic_runs import evaluation, flags, write_run

from doratune.errors import DoratuneError
from doratune.evaluation.evaluate import _add
from doratune.records.run import Evaluation
from doratune.records.storage import read_record, write_record


def one(task: str) -> Evaluation:
    return Evaluation.model_validate(evaluation(task, flags(3, 8)))


def test_evaluations_of_another_process_are_kept(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", "dora", {"sample-boolq": flags(5, 8)})
    record = read_record(run)
    _add(one("sample-hellaswag"), record, run)
    after = _add(one("sample-winogrande"), record, run)
    assert [entry.task for entry in after.evaluations] == [
        *("sample-boolq", "sample-hellaswag", "sample-winogrande")
    ]
    assert read_record(run) == after


def test_an_old_evaluation_is_not_added_to_a_run_trained_again(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", "dora", {"sample-boolq": flags(5, 8)})
    record = read_record(run)
    write_record(run, record.model_copy(update={"started": datetime(2100, 1, 1, tzinfo=UTC)}))
    with pytest.raises(DoratuneError, match="trained again while it was evaluated"):
        _add(one("sample-hellaswag"), record, run)
    assert len(read_record(run).evaluations) == 1
