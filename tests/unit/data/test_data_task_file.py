"""Tasks in files of the user's own: what they do, and one short error where they are wrong."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from doratune.data.examples import build_examples
from doratune.data.layouts import layouts
from doratune.data.reader import read_rows
from doratune.data.task_file import task_template
from doratune.data.tasks import Task, get_task, get_tasks
from doratune.errors import InputError

LAYOUT = {
    "template": "{stem}\n{options}\nSay {labels}",
    "labels": ["first", "second", "third"],
    "fewest": 2,
    "option": "{number}) {text}",
    "between": "\n",
    "continuation": "{stem}",
    "metric": "accuracy",
}
TASK: dict[str, Any] = {"name": "mine", "layout": LAYOUT}


def task_file(folder: Path, values: Any, name: str = "task.yaml") -> str:
    path = folder / name
    path.write_text(values if isinstance(values, str) else yaml.safe_dump(values), encoding="utf-8")
    return str(path)


def example(folder: Path, task: Task, row: dict[str, Any], fmt: Any = "instruct"):
    path = folder / "rows.json"
    path.write_text(json.dumps([row]), encoding="utf-8")
    (found,) = build_examples(read_rows(path, task), source="rows", fmt=fmt, task=task)
    return found


def test_a_layout_of_its_own(tmp_path: Path) -> None:
    task = get_task(task_file(tmp_path, TASK))
    found = example(tmp_path, task, {"question": "Which?", "choices": ["x", "y"], "answer": "y"})
    assert "Which?\n1) x\n2) y\nSay first/second\n" in found.prompt
    assert found.candidates[found.gold] == "the correct answer is second" and found.task == "mine"


def test_a_layout_by_name(tmp_path: Path) -> None:
    task = get_task(task_file(tmp_path, {"name": "mine", "layout": "choices"}, "task.yml"))
    assert task.layout == layouts()["choices"] and task.title == "mine"


@pytest.mark.parametrize("choices", [{}, {"choices": ["yes", "no"]}])
def test_labels_that_are_the_answers(tmp_path: Path, choices: dict[str, Any]) -> None:
    layout = {
        **{"template": "{stem} Say {labels}", "labels": ["yes", "no"], "fewest": 2},
        **{"continuation": "{stem}", "metric": "accuracy"},
    }
    task = get_task(task_file(tmp_path, {"name": "mine", "layout": layout}))
    found = example(tmp_path, task, {"question": "Is it?", "answer": "no", **choices})
    assert found.prompt.endswith("Is it? Say yes/no\n\n### Response:\n")
    assert found.candidates == ("the correct answer is yes", "the correct answer is no") and found.gold == 1
    with pytest.raises(InputError, match="choices of mine are its labels"):
        example(tmp_path, task, {"question": "Is it?", "choices": ["no", "yes"], "answer": "no"})


def test_rows_with_other_names(tmp_path: Path) -> None:
    row = {"stem": "{a.b} {q}", "options": ["x", "y"], "answer": "label", "answers": ["1", "2"]}
    task = get_task(task_file(tmp_path, {**TASK, "row": row}))
    found = example(tmp_path, task, {"a": {"b": "So"}, "q": "what?", "x": "X", "y": "Y", "label": 2})
    assert "So what?\n1) X\n2) Y\nSay first/second\n" in found.prompt and found.gold == 1


def test_a_definition_comes_back_from_a_record(tmp_path: Path) -> None:
    task = get_task(task_file(tmp_path, TASK))
    definition = json.loads(json.dumps(task.definition))
    assert get_task("mine", recorded={"mine": definition}) == task
    assert get_task("boolq").definition is None
    with pytest.raises(InputError, match="unknown task"):
        get_task("mine")


def test_two_files_with_one_name(tmp_path: Path) -> None:
    first, same = task_file(tmp_path, TASK), task_file(tmp_path, TASK, "same.yaml")
    other = task_file(tmp_path, {**TASK, "layout": "choices"}, "other.yaml")
    assert [task.name for task in get_tasks([first, same])] == ["mine"]
    with pytest.raises(InputError, match="another name than mine"):
        get_tasks([first, other])


def test_the_template_is_a_task(tmp_path: Path) -> None:
    task = get_task(task_file(tmp_path, task_template()))
    found = example(tmp_path, task, {"question": "?", "choices": ["x", "y", "z"], "answer": "z"})
    assert found.gold == 2


def test_the_template_s_comments_name_existing_fields(tmp_path: Path) -> None:
    head, tail = task_template().split("# row:\n")
    whole = head + "row:\n" + tail.replace("# hub:\n", "hub:\n").replace("#   ", "  ")
    task = get_task(task_file(tmp_path, whole))
    assert task.row is not None and task.hub is not None and task.hub.splits["test"] == "validation"


@pytest.mark.parametrize(
    "labels", [["no", "yes"], ["A", "B"], ["answer1", "answer10"], ["I", "II", "III"]], ids=" ".join
)
def test_a_label_inside_a_word_or_another_label_does_not_count(tmp_path: Path, labels: list[str]) -> None:
    from doratune.evaluation.generate import extract_answer

    task = get_task(task_file(tmp_path, {**TASK, "layout": {**LAYOUT, "labels": labels}}))
    for label in labels:
        assert extract_answer(f"Answering: {label}.", task.pattern, labels) == label
    assert extract_answer("nobody, Another, answer100, IIIV", task.pattern, labels) is None


def test_the_longer_of_two_labels_is_found(tmp_path: Path) -> None:
    from doratune.evaluation.generate import extract_answer

    labels = ["toxic", "toxic but funny", "C", "C++"]
    for whole in (True, False):
        layout = {**LAYOUT, "labels": labels, "whole_words": whole}
        task = get_task(task_file(tmp_path, {**TASK, "layout": layout}))
        for label in labels[:2] if whole else labels:
            assert extract_answer(f"It is {label}.", task.pattern, labels) == label


WRONG = [
    ({"nmae": "x"}, "nmae", "did you mean name?"),
    ({"name": None}, "name", "a text"),
    ({"name": "boolq"}, "name", "a built-in task has this name"),
    ({"name": "My Task"}, "name", "a-z"),
    ({"name": "../x"}, "name", "a-z"),
    ({"version": "1"}, "version", "a whole number"),
    ({"layout": "choice"}, "layout", "choices"),
    ({"layout": None}, "layout", "a mapping"),
    ({"layout": {}}, "layout.template", "doratune tasks --template"),
    ({"layout": {**LAYOUT, "labels": [True, False]}}, "layout.labels.0", 'write them in quotes, as "yes"'),
    ({"layout": {**LAYOUT, "labels": "A"}}, "layout.labels", "a list"),
    ({"layout": {**LAYOUT, "labels": ["A", "A"]}}, "layout.labels", "each label once"),
    ({"layout": {**LAYOUT, "labels": ["A"]}}, "layout.labels", "2 to 26 labels"),
    ({"layout": {**LAYOUT, "labels": ["A/B", "C"]}}, "layout.labels", "slash"),
    ({"layout": {**LAYOUT, "fewest": 9}}, "layout.fewest", "2 to 3"),
    ({"layout": {**LAYOUT, "template": "{stem} {labels}"}}, "layout.template", "{options}"),
    ({"layout": {**LAYOUT, "template": "{stem} {options} {labels"}}, "layout.template", "{labels}"),
    ({"layout": {**LAYOUT, "option": "{text}"}}, "layout.option", "{label} or {number}"),
    ({"layout": {**LAYOUT, "between": ""}}, "layout.between", "separates"),
    ({"layout": {**LAYOUT, "continuation": "x"}}, "layout.continuation", "{stem}"),
    ({"layout": {**LAYOUT, "metric": "f1"}}, "layout.metric", "'accuracy' or 'accuracy_norm'"),
    ({"layout": {**LAYOUT, "clean": [{"find": "(", "replace": ""}]}}, "layout.clean.0.find", "regular"),
    ({"layout": {**LAYOUT, "colour": "red"}}, "layout.colour", "one of name, template"),
    (
        {"layout": {**LAYOUT, "clean": [{"find": "a", "replace": "\\2"}]}},
        "layout.clean.0.replace",
        "replacement",
    ),
    ({"row": {"stem": "x", "answer": "a", "answers": "o"}}, "row.stem", "a column in braces"),
    ({"row": {"stem": "Q: {}", "answer": "a", "answers": "o"}}, "row.stem", "a column in braces"),
    (
        {"row": {"stem": "{x}", "options": ["a", "a"], "answer": "a", "answers": ["1", "2"]}},
        "row.options",
        "each column once",
    ),
    (
        {"row": {"stem": "{x}", "options": ["a", "b"], "answer": "a", "answers": ["1", "1"]}},
        "row.answers",
        "each value once",
    ),
    ({"row": {"stem": "{x}", "answer": "a", "answers": "o"}}, "row.options", "columns of the options"),
    (
        {"row": {"stem": "{x}", "options": ["a", "b"], "answer": "a", "answers": ["1"]}},
        "row.answers",
        "2 values",
    ),
    (
        {"row": {"stem": "{x}", "options": 3, "answer": "a", "answers": "o"}},
        "row.options",
        "a text or a list",
    ),
    ({"hub": {"path": "a/b", "splits": {"train": "t", "test": "t"}}}, "row", "how a row"),
    ({"choices": [1, 9]}, "choices", "2 to 3"),
    ({"sample": True}, "sample", "no such field"),
]


@pytest.mark.parametrize(("change", "field", "told"), WRONG)
def test_a_wrong_file_is_one_short_error(
    tmp_path: Path, change: dict[str, Any], field: str, told: str
) -> None:
    path = task_file(tmp_path, {**TASK, **change})
    with pytest.raises(InputError) as caught:
        get_task(path)
    message = str(caught.value)
    assert f"where: {path}, {field}\n" in message and told in message
    assert "got: " in message and "expected: " in message
    assert len(message.splitlines()) <= 5
    assert "Input should" not in message and "pydantic" not in message and "validation error" not in message


@pytest.mark.parametrize("text", ["[1", "- a", "a: 1\na: 2"])
def test_a_file_that_is_not_a_mapping(tmp_path: Path, text: str) -> None:
    path = task_file(tmp_path, text)
    with pytest.raises(InputError, match="task"):
        get_task(path)


def test_a_file_that_is_not_there() -> None:
    with pytest.raises(InputError, match="no such task file"):
        get_task("none.yaml")


OWN_ROWS = {
    **TASK,
    "row": {"stem": "{instruction}", "options": ["x", "y"], "answer": "output", "answers": ["1", "2"]},
}


def test_columns_may_be_called_as_in_the_other_layout(tmp_path: Path) -> None:
    task = get_task(task_file(tmp_path, OWN_ROWS))
    found = example(tmp_path, task, {"instruction": "Which?", "x": "a", "y": "b", "output": 2})
    assert "Which?\n1) a\n2) b" in found.prompt and found.candidates[found.gold].endswith("second")


@pytest.mark.parametrize(
    ("row", "told"),
    [
        ({"x": " ", "y": "b"}, "empty option"),
        ({"x": "a\ud800", "y": "b"}, "not valid Unicode"),
    ],
)
def test_a_converted_row_that_cannot_be_asked_is_refused(
    tmp_path: Path, row: dict[str, str], told: str
) -> None:
    task = get_task(task_file(tmp_path, OWN_ROWS))
    with pytest.raises(InputError, match=told):
        example(tmp_path, task, {"instruction": "Which?", "output": "1", **row})


def test_a_row_has_as_many_answers_as_options(tmp_path: Path) -> None:
    row = {"stem": "{q}", "options": "texts", "answer": "key", "answers": "keys"}
    task = get_task(task_file(tmp_path, {**TASK, "row": row}))
    given = {"q": "Which?", "texts": ["a", "b"], "keys": ["1", "2", "3"], "key": "3"}
    with pytest.raises(InputError, match=r"3 answers, 2 options"):
        example(tmp_path, task, given)
