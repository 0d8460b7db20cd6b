"""The rows and task files in the guides are what they are said to be."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from doratune.data.examples import build_examples
from doratune.data.reader import read_rows
from doratune.data.tasks import get_task

GUIDES = Path(__file__).parents[3] / "docs/guides"


def blocks(page: str, language: str) -> list[str]:
    text = (GUIDES / page).read_text(encoding="utf-8")
    return re.findall(rf"^```{language}\n(.*?)^```$", text, flags=re.DOTALL | re.MULTILINE)


def test_the_rows_of_every_layout(tmp_path: Path) -> None:
    shown = blocks("own-data.md", "json")
    for text, name in zip(shown, ("multiple-choice", "boolq", "winogrande", None), strict=True):
        (tmp_path / "rows.jsonl").write_text(text, encoding="utf-8")
        task = get_task(name) if name else None
        rows = read_rows(tmp_path / "rows.jsonl", task)
        examples = build_examples(rows, source="guide", fmt="instruct", task=task)
        right = {"multiple-choice": ["B", "A", "D"], "boolq": ["true"], "winogrande": ["option2"]}
        assert [one.labels[one.gold] for one in examples] == right.get(name or "", ["Iron."])


def test_the_task_files(tmp_path: Path) -> None:
    *tasks, plan = blocks("own-task.md", "yaml")
    found = {}
    for text in tasks:
        (tmp_path / "task.yaml").write_text(text, encoding="utf-8")
        task = get_task(str(tmp_path / "task.yaml"))
        found[task.name] = task
    assert list(found) == ["facts", "exam", "exam-on-the-hub"] and "train_data" in plan
    (row,) = blocks("own-task.md", "json")
    (tmp_path / "row.json").write_text(row, encoding="utf-8")
    rows = read_rows(tmp_path / "row.json", found["exam"])
    (example,) = build_examples(rows, source="guide", fmt="continuation", task=found["exam"])
    assert (
        example.candidates[example.gold] == "honey"
        and "Bees live in hives. What do they make?" in example.prompt
    )


@pytest.mark.parametrize("page", ["own-data.md", "own-task.md"])
def test_a_guide_is_short(page: str) -> None:
    assert len((GUIDES / page).read_text(encoding="utf-8").split()) < 700
