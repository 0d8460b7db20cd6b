"""What ``doratune train`` says at its end."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Any

import pytest

from doratune.cli.train import next_command
from doratune.training.config import TrainConfig


def told(**settings: Any) -> list[str]:
    return next_command(TrainConfig(output=Path("runs/own"), **settings)).splitlines()


@pytest.mark.parametrize("name", ["sample-boolq", "arc-easy", "commonsense-mix"])
def test_a_task_with_its_own_rows_needs_no_file(name: str) -> None:
    assert told(task=[name]) == [f"doratune eval runs/own --task {name}"]


def test_rows_of_a_file_are_tested_on_the_file_next_to_them(tmp_path: Path) -> None:
    folder = tmp_path / "my rows"
    folder.mkdir()
    (folder / "test.jsonl").touch()
    (line,) = told(task=["multiple-choice"], data=folder / "train.jsonl")
    assert shlex.split(line)[2:] == [
        *("runs/own", "--task", "multiple-choice", "--data", str(folder / "test.jsonl"))
    ]


def test_a_folder_of_several_tasks_has_the_test_rows_of_each(tmp_path: Path) -> None:
    (tmp_path / "boolq").mkdir()
    (tmp_path / "boolq" / "test.json").touch()
    (line,) = told(task=["boolq", "piqa"], data=tmp_path)
    assert line.endswith(f"--task boolq --data {tmp_path}/boolq/test.json")


def test_what_is_left_to_fill_in_is_said(tmp_path: Path) -> None:
    line, task, rows = told(data=tmp_path / "rows.jsonl")
    assert line == "doratune eval runs/own --task TASK --data TEST_ROWS"
    assert task.strip().startswith("TASK: ") and rows.strip().startswith("TEST_ROWS: ")
