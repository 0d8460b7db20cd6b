"""What ``doratune tasks NAME`` says of rows that people write: it is what the reader takes."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from doratune.data.choices import check_choice_row
from doratune.data.described import task_lines
from doratune.data.task_file import task_template
from doratune.data.tasks import Task, get_task

YES_NO = """name: colours
layout:
  template: "{stem} Answer format: {labels}"
  labels: ["yes", "no"]
  fewest: 2
  continuation: "{stem}"
  metric: accuracy
"""


def task_of(folder: Path, text: str) -> Task:
    (folder / "task.yaml").write_text(text, encoding="utf-8")
    return get_task(str(folder / "task.yaml"))


def row_of(task: Task) -> dict[str, object]:
    """The row that is shown, as JSON."""
    (line,) = (line for line in task_lines(task) if line.startswith("a row"))
    return json.loads(line.removeprefix("a row"))


def test_the_row_that_is_shown_can_be_read(tmp_path: Path) -> None:
    tasks = [get_task("multiple-choice"), *(task_of(tmp_path, text) for text in (task_template(), YES_NO))]
    for task in tasks:
        assert check_choice_row(row_of(task), task, "shown")


def test_a_task_with_labels_for_answers_shows_them(tmp_path: Path) -> None:
    task = task_of(tmp_path, YES_NO)
    assert row_of(task) == {"question": "...", "answer": "yes"}
    assert any("one of yes, no" in line for line in task_lines(task))


@pytest.mark.parametrize("name", ["arc-easy", "sample-boolq"])
def test_a_task_that_brings_its_rows_shows_none(name: str) -> None:
    assert not any(line.startswith("a row") for line in task_lines(get_task(name)))
