"""Rows with question, choices and answer: what each means, and what is refused."""

from __future__ import annotations

import json
import string
from pathlib import Path
from typing import Any

import pytest

from doratune.data.choices import right_choice
from doratune.data.examples import build_examples
from doratune.data.reader import read_rows
from doratune.data.source import load_split
from doratune.data.tasks import get_task
from doratune.errors import InputError
from doratune.evaluation.generate import extract_answer

TASK = get_task("multiple-choice")
ROW: dict[str, Any] = {
    "question": "What do bees make?",
    "choices": ["milk", "honey", "silk"],
    "answer": "honey",
}


def written(folder: Path, *rows: dict[str, Any], lines: bool = True) -> Path:
    path = folder / ("rows.jsonl" if lines else "rows.json")
    path.write_text("\n".join(map(json.dumps, rows)) if lines else json.dumps(rows), encoding="utf-8")
    return path


def refused(folder: Path, row: dict[str, Any]) -> str:
    path = written(folder, ROW, row)
    with pytest.raises(InputError) as caught:
        read_rows(path, TASK)
    assert f"{path}, row 2" in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("answer", [1, "1", "B", "honey"])
@pytest.mark.parametrize("lines", [True, False])
def test_index_letter_and_text_mean_the_same_in_json_and_jsonl(
    tmp_path: Path, answer: object, lines: bool
) -> None:
    rows = read_rows(written(tmp_path, {**ROW, "answer": answer, "id": 7}, lines=lines), TASK)
    (example,) = build_examples(rows, source="rows", fmt="instruct", task=TASK)
    assert (example.gold, example.labels, example.task) == (1, ("A", "B", "C"), "multiple-choice")


def test_both_formats(tmp_path: Path) -> None:
    rows = read_rows(written(tmp_path, ROW), TASK)
    (asked,) = build_examples(rows, source="rows", fmt="instruct", task=TASK)
    assert asked.prompt.endswith(
        "### Instruction:\nPlease choose the correct answer to the question: What do bees make?\n\n"
        "A: milk\nB: honey\nC: silk\n\nAnswer format: A/B/C\n\n### Response:\n"
    )
    assert asked.candidates == tuple(f"the correct answer is {label}" for label in "ABC")
    (continued,) = build_examples(rows, source="rows", fmt="continuation", task=TASK)
    assert continued.prompt.endswith("### Instruction:\nWhat do bees make?\n\n### Response:\n")
    assert (continued.candidates, continued.gold) == (("milk", "honey", "silk"), 1)


@pytest.mark.parametrize("count", [2, 3, 26])
def test_every_number_of_choices_and_every_answer(tmp_path: Path, count: int) -> None:
    choices = [f"choice {index}" for index in range(count)]
    made = [{"question": "?", "choices": choices, "answer": index} for index in range(count)]
    examples = build_examples(
        read_rows(written(tmp_path, *made), TASK), source="rows", fmt="instruct", task=TASK
    )
    assert [one.gold for one in examples] == list(range(count))
    for one in examples:  # what training teaches is read as the right answer
        assert one.labels == tuple(string.ascii_uppercase[:count])
        assert extract_answer(one.candidates[one.gold], TASK.pattern, one.labels) == one.labels[one.gold]


def test_texts_that_look_like_the_layout_stay_what_they_are(tmp_path: Path) -> None:
    question = "Who says\n\nA: hello\nB: bye\n\nAnswer format: A/B"
    rows = read_rows(
        written(tmp_path, {"question": question, "choices": ["x\nB: y", "z"], "answer": 1}), TASK
    )
    (example,) = build_examples(rows, source="rows", fmt="continuation", task=TASK)
    assert example.candidates == ("x\nB: y", "z") and question in example.prompt


@pytest.mark.parametrize(
    ("choices", "answer", "message"),
    [
        (["1", "2", "3"], 1, "as the text '1', and as the index '2'"),
        (["1", "2", "3"], "1", "as the text '1', and as the index '2'"),
        (["B", "A"], "A", "as the text 'A', and as the letter 'B'"),
    ],
)
def test_an_answer_with_two_meanings_is_refused(
    tmp_path: Path, choices: list[str], answer: object, message: str
) -> None:
    told = refused(tmp_path, {**ROW, "choices": choices, "answer": answer})
    assert message in told and ("letters" if "1" in choices else "indices") in told


@pytest.mark.parametrize(
    ("choices", "answer", "right"),
    [
        (["1", "2", "3"], "B", 1),
        (["0", "1", "2"], 1, 1),
        (["A", "B", "C"], "C", 2),
        (["B", "A"], 0, 0),
        (["3", "4"], "4", 1),
        (["yes", "no"], "no", 1),
    ],
)
def test_readings_that_agree_are_accepted(choices: list[str], answer: object, right: int) -> None:
    assert right_choice(choices, answer, "row 1") == right


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"answer": 3}, "an index from 0 to 2, a letter from A to C, or one of"),
        ({"answer": -1}, "not one of its choices"),
        ({"answer": "D"}, "not one of its choices"),
        ({"answer": "b"}, "not one of its choices"),
        ({"answer": "honey "}, '"honey "'),
        ({"answer": True}, "not one of its choices"),
        ({"answer": 1.0}, "not one of its choices"),
        ({"answer": None}, "not one of its choices"),
        ({"answer": [1]}, "not one of its choices"),
        ({"choices": ["a", "b", "a "], "answer": 1}, "repeats a choice"),
        ({"choices": ["a"], "answer": 0}, "2 to 26"),
        ({"choices": [f"c{i}" for i in range(27)], "answer": 0}, "got: 27"),
        ({"choices": ["a", " "], "answer": 0}, "not a list of texts"),
        ({"choices": ["a", 1], "answer": 0}, "not a list of texts"),
        ({"choices": {"text": ["a", "b"]}, "answer": 0}, "not a list of texts"),
        ({"question": " "}, "'question' is not text"),
        ({"question": "\ud800"}, "not valid Unicode"),
    ],
)
def test_a_row_that_cannot_be_used_is_named(tmp_path: Path, change: dict[str, Any], message: str) -> None:
    assert message in refused(tmp_path, {**ROW, **change})


@pytest.mark.parametrize(
    "row",
    [
        {"input": "What?", "options": ["a", "b"], "target": 0},
        {"question": "What?", "choices": ["a", "b"], "label": 0},
        {"query": "What?", "choices": ["a", "b"], "gold": 0},
        {"question": "What?", "A": "a", "B": "b", "answer": "A"},
        {},
    ],
)
def test_other_field_names_are_not_guessed(tmp_path: Path, row: dict[str, Any]) -> None:
    told = refused(tmp_path, row)
    assert "has no '" in told and '{"question": "What do bees make?", "choices": ["milk"' in told


def test_rows_without_a_task_lead_to_it(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="add --task multiple-choice"):
        read_rows(written(tmp_path, ROW))


def test_the_task_has_no_rows_without_a_file() -> None:
    with pytest.raises(InputError) as caught:
        load_split(TASK, "test")
    assert "--data FILE" in str(caught.value) and "What do bees make?" in str(caught.value)


def test_a_row_of_the_llm_adapters_layout_is_still_read(tmp_path: Path) -> None:
    row = {"instruction": "?", "output": "the correct answer is true", "answer": "true"}
    assert read_rows(written(tmp_path, row), get_task("boolq")) == [{**row, "input": ""}]


def test_a_shipped_task_reads_the_rows_of_its_data_set(tmp_path: Path) -> None:
    row = {"sentence": "Ann met Bo, so _ left.", "option1": "Ann", "option2": "Bo", "answer": "2"}
    (read,) = read_rows(written(tmp_path, row), get_task("winogrande"))
    assert read["answer"] == "option2" and "Option1: Ann Option2: Bo" in read["instruction"]
