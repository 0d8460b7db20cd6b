"""Tasks and wordings as data."""

import subprocess
import sys

import pytest
from pydantic import ValidationError

from doratune.data.layouts import Layout, Question, layouts, recognise
from doratune.data.tasks import GENERIC, Task, get_task, task_names
from doratune.errors import InputError
from doratune.named_yaml import read_definitions

# The wording of the original study's data files.
WORDINGS = {
    "boolq": (
        Question("is it blue?", ("true", "false")),
        "Please answer the following question with true or false, question: is it blue?\n\n"
        "Answer format: true/false",
    ),
    "piqa": (
        Question("Cut it", ("with a knife", "with a spoon")),
        "Please choose the correct solution to the question: Cut it\n\nSolution1: with a knife\n\n"
        "Solution2: with a spoon\n\nAnswer format: solution1/solution2",
    ),
    "social_i_qa": (
        Question("Al fell. Why?", ("a", "b c", "d")),
        "Please choose the correct answer to the question: Al fell. Why?\n\nAnswer1: a Answer2: b c "
        "Answer3: d\n\nAnswer format: answer1/answer2/answer3",
    ),
    "openbookqa": (
        Question("Cows eat", ("a", "b", "c", "d")),
        "Please choose the correct answer to the question: Cows eat\n\nAnswer1: a Answer2: b Answer3: c "
        "Answer4: d\n\nAnswer format: answer1/answer2/answer3/answer4",
    ),
    "arc-easy": (
        Question("Why?", ("a", "b", "c", "d", "e")),
        "Please choose the correct answer to the question: Why?\n\nAnswer1: a Answer2: b Answer3: c "
        "Answer4: d Answer5: e\n\nAnswer format: answer1/answer2/answer3/answer4/answer5",
    ),
    "hellaswag": (
        Question("Tennis: A man", ("runs.", "eats.", "is red.", "flies.")),
        "Please choose the correct ending to complete the given sentence: Tennis: A man\n\nEnding1: runs. "
        "Ending2: eats. Ending3: is red. Ending4: flies.\n\nAnswer format: ending1/ending2/ending3/ending4",
    ),
    "winogrande": (
        Question("Ann met Bo, so _ left.", ("Ann", "Bo")),
        "Please choose the correct answer to fill in the blank to complete the given sentence: "
        "Ann met Bo, so _ left.\n\nOption1: Ann Option2: Bo Answer format: option1/option2",
    ),
}
PATTERNS = {
    "boolq": "true|false",
    "piqa": "solution1|solution2",
    "social_i_qa": "answer1|answer2|answer3|answer4|answer5",
    "arc-easy": "answer1|answer2|answer3|answer4|answer5",
    "arc-challenge": "answer1|answer2|answer3|answer4|answer5",
    "openbookqa": "answer1|answer2|answer3|answer4|answer5",
    "hellaswag": "ending1|ending2|ending3|ending4",
    "winogrande": "option1|option2",
}
SAMPLES = {"sample-boolq": "boolq", "sample-hellaswag": "hellaswag", "sample-winogrande": "winogrande"}


def test_all_tasks_are_there():
    assert set(task_names()) == {*PATTERNS, *SAMPLES, GENERIC}


def test_files_are_named_after_what_they_define():
    assert all(name == layout.name for name, layout in layouts().items())
    assert all(name == get_task(name).name for name in task_names())


@pytest.mark.parametrize("name", WORDINGS)
def test_wording(name):
    question, instruction = WORDINGS[name]
    layout = get_task(name).layout
    assert layout.render(question) == instruction
    assert layout.parse(instruction) == question


@pytest.mark.parametrize("name", WORDINGS)
def test_a_wording_is_recognised_by_its_layout_only(name):
    question, instruction = WORDINGS[name]
    assert recognise(instruction, layouts().values()) == (get_task(name).layout, question)
    others = [layout for layout in layouts().values() if layout != get_task(name).layout]
    assert recognise(instruction, others) is None


@pytest.mark.parametrize(
    "text", ["{x} {}", "a\n\nb", "Answer format: true/false", "Step1: x", " spaced ", "ünï"]
)
@pytest.mark.parametrize("name", [name for name in WORDINGS if name != "boolq"])
def test_odd_texts_come_back(name, text):
    layout = get_task(name).layout
    question = Question(text, tuple(f"{text}{i}" for i in range(layout.fewest)))
    assert layout.parse(layout.render(question)) == question


@pytest.mark.parametrize("name", WORDINGS)
@pytest.mark.parametrize(
    "change",
    [
        lambda text: text + " ",
        lambda text: " " + text,
        lambda text: text.replace("Answer format", "Format"),
        lambda text: text[: text.rindex("/")],
        lambda text: text.replace("1: ", "7: ") if "1: " in text else text.replace("question:", "question"),
        lambda text: "",
    ],
)
def test_another_wording_is_not_recognised(name, change):
    changed = change(WORDINGS[name][1])
    assert get_task(name).layout.parse(changed) is None


def test_wikihow_marks_go_in_the_continuation_format():
    layout = get_task("hellaswag").layout
    stem = "Health: [header] How to sleep [title] Lie down. [step] Now [be] still. [substeps] Then"
    options = ("[title] Rest. [step] Long.", " sleep ", "[substeps] a [title] b", "c")
    assert layout.continue_from(Question(stem, options)) == Question(
        "Please complete the given sentence: Health: How to sleep. Lie down. Now [be] still. Then",
        ("Rest. Long.", "sleep", "a. b", "c"),
    )


@pytest.mark.parametrize("name", PATTERNS)
def test_pattern_is_the_original_study_s(name):
    assert get_task(name).pattern == PATTERNS[name]
    assert "|".join(get_task(name).labels) == PATTERNS[name]


@pytest.mark.parametrize("name", SAMPLES)
def test_samples_share_the_layout_of_their_models_and_say_what_they_are(name):
    task = get_task(name)
    assert task.layout is get_task(SAMPLES[name]).layout
    assert task.sample and "ample" in task.title
    assert not get_task(SAMPLES[name]).sample


@pytest.mark.parametrize("name", ["ARC-Easy", "arc-easy", "BoolQ", "ARC-Challenge", "social_i_qa"])
def test_names_in_any_case(name):
    assert get_task(name).name == name.lower()


def test_unknown_task_names_the_nearest_and_all():
    with pytest.raises(InputError) as caught:
        get_task("helaswag")
    message = str(caught.value)
    assert "did you mean hellaswag?" in message and all(name in message for name in task_names())


def test_unknown_task_without_a_near_name():
    with pytest.raises(InputError) as caught:
        get_task("qqqqqqqq")
    assert "did you mean" not in str(caught.value)


TASK = {
    "name": "x",
    "title": "X",
    "version": 1,
    "licence": "MIT",
    "layout": "answers",
    "hub": {"path": "a/b", "splits": {"train": "train", "test": "test"}},
    "row": {"stem": "{q}", "options": "o", "answer": "a", "answers": "k"},
}


def test_a_definition_of_a_task():
    assert Task.model_validate(TASK).layout.name == "answers"


@pytest.mark.parametrize(
    "change",
    [
        {"colour": "red"},
        {"version": "1"},
        {"layout": "nonsense"},
        {"row": None},
        {"sample": True},
        {"hub": {"path": "a/b", "splits": {"train": "train", "dev": "test"}}},
        {"row": {**TASK["row"], "extra": 1}},
    ],
)
def test_a_wrong_definition_is_refused(change):
    with pytest.raises(ValidationError):
        Task.model_validate({**TASK, **change})


def test_definitions_are_read_from_the_package():
    assert read_definitions("doratune.data", "layouts", Layout).keys() == layouts().keys()


def test_importing_the_data_modules_imports_nothing_heavy():
    modules = "convert, examples, layouts, originals, reader, rows, source, tasks"
    code = f"""
import sys
from doratune.data import {modules}
tasks.get_task("boolq")
print(sorted({{"torch", "transformers", "datasets", "peft"}} & set(sys.modules)))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize(
    ("name", "metric"),
    [
        # The headline metrics of lm-evaluation-harness' tasks of these names.
        ("boolq", "accuracy"),
        ("winogrande", "accuracy"),
        ("hellaswag", "accuracy_norm"),
        ("piqa", "accuracy_norm"),
        ("arc-easy", "accuracy_norm"),
        ("arc-challenge", "accuracy_norm"),
        ("openbookqa", "accuracy_norm"),
    ],
)
def test_headline_metric_of_continuations(name, metric):
    assert get_task(name).layout.metric == metric
