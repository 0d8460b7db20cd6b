"""Rows -> prompts and candidates."""

import pytest

from doratune.data.examples import Example, build_examples
from doratune.data.rows import render_prompt
from doratune.data.tasks import get_task
from doratune.errors import InputError
from doratune.records.run import Format

HEAD = "Below is an instruction that describes a task"
WRITE = "Write a response that appropriately completes the request.\n\n### Instruction:\n"


def row(instruction: str, answer: str, **changes: str) -> dict[str, str]:
    return {
        "instruction": instruction,
        "input": "",
        "output": f"the correct answer is {answer}",
        "answer": answer,
        **changes,
    }


ROWS = {
    "boolq": row(
        "Please answer the following question with true or false, question: is it so?\n\n"
        "Answer format: true/false",
        "false",
    ),
    "piqa": row(
        "Please choose the correct solution to the question: Cut it\n\nSolution1: use a knife \n\n"
        "Solution2: use a spoon\n\nAnswer format: solution1/solution2",
        "solution1",
    ),
    "arc-challenge": row(
        "Please choose the correct answer to the question: Why?\n\nAnswer1: a Answer2: b c Answer3: d\n\n"
        "Answer format: answer1/answer2/answer3",
        "answer3",
    ),
    "hellaswag": row(
        "Please choose the correct ending to complete the given sentence: Tennis: A man\n\nEnding1: runs. "
        "Ending2: eats. Ending3: [step] is red. Ending4: flies.\n\n"
        "Answer format: ending1/ending2/ending3/ending4",
        "ending2",
    ),
    "winogrande": row(
        "Please choose the correct answer to fill in the blank to complete the given sentence: "
        "Ann met Bo, so _ left.\n\nOption1: Ann Option2: Bo Answer format: option1/option2",
        "option2",
    ),
}
CONTINUED = {
    "boolq": (
        "Please answer the following question with true or false, question: is it so?",
        ("true", "false"),
    ),
    "piqa": ("Cut it", ("use a knife", "use a spoon")),
    "arc-challenge": ("Why?", ("a", "b c", "d")),
    "hellaswag": (
        "Please complete the given sentence: Tennis: A man",
        ("runs.", "eats.", "is red.", "flies."),
    ),
    "winogrande": (
        "Please fill in the blank to complete the given sentence: Ann met Bo, so _ left.",
        ("Ann", "Bo"),
    ),
}
LABELS = {
    "boolq": ("true", "false"),
    "piqa": ("solution1", "solution2"),
    "arc-challenge": ("answer1", "answer2", "answer3"),
    "hellaswag": ("ending1", "ending2", "ending3", "ending4"),
    "winogrande": ("option1", "option2"),
}
GOLD = {"boolq": 1, "piqa": 0, "arc-challenge": 2, "hellaswag": 1, "winogrande": 1}


def build(rows, fmt: Format = "instruct", task: str | None = None) -> list[Example]:
    return build_examples(rows, source="rows.json", fmt=fmt, task=get_task(task) if task else None)


def refused(*args, **kwargs) -> str:
    with pytest.raises(InputError) as caught:
        build(*args, **kwargs)
    return str(caught.value)


def test_prompt_without_input():
    assert render_prompt("Do {it}.") == f"{HEAD}. {WRITE}Do {{it}}.\n\n### Response:\n"


def test_prompt_with_input():
    assert render_prompt("Do it.", "here") == (
        f"{HEAD}, paired with an input that provides further context. "
        f"{WRITE}Do it.\n\n### Input:\nhere\n\n### Response:\n"
    )


@pytest.mark.parametrize("name", ROWS)
def test_instruct_keeps_the_instruction_and_asks_for_the_label(name):
    (example,) = build([ROWS[name]], task=name)
    assert example == Example(
        row=0,
        task=name,
        prompt=f"{HEAD}. {WRITE}{ROWS[name]['instruction']}\n\n### Response:\n",
        candidates=tuple(f"the correct answer is {label}" for label in LABELS[name]),
        labels=LABELS[name],
        gold=GOLD[name],
    )
    assert example.candidates[example.gold] == ROWS[name]["output"]


@pytest.mark.parametrize("name", ROWS)
def test_continuation_asks_for_the_answer_s_own_text(name):
    (example,) = build([ROWS[name]], "continuation", name)
    instruction, candidates = CONTINUED[name]
    assert example == Example(
        row=0,
        task=name,
        prompt=f"{HEAD}. {WRITE}{instruction}\n\n### Response:\n",
        candidates=candidates,
        labels=LABELS[name],
        gold=GOLD[name],
    )


@pytest.mark.parametrize("fmt", ["instruct", "continuation"])
def test_a_mixed_file_is_recognised_row_by_row(fmt):
    mixed = build(list(ROWS.values()), fmt)
    alone = [build([ROWS[name]], fmt, name)[0] for name in ROWS]
    assert [example.row for example in mixed] == list(range(len(ROWS)))
    assert {example.task for example in mixed} == {""}
    for one, other in zip(mixed, alone, strict=True):
        assert (one.prompt, one.candidates, one.labels, one.gold) == (
            other.prompt,
            other.candidates,
            other.labels,
            other.gold,
        )


@pytest.mark.parametrize("fmt", ["instruct", "continuation"])
def test_the_input_goes_into_the_prompt(fmt):
    (example,) = build([{**ROWS["boolq"], "input": "It is so."}], fmt, "boolq")
    assert "\n\n### Input:\nIt is so.\n\n### Response:\n" in example.prompt


def test_plain_instruction_data_has_its_output_as_the_only_candidate():
    plain = row("Add 1 and 2.", "3", output="1 + 2 = 3")
    (example,) = build([plain])
    assert (example.candidates, example.labels, example.gold) == (("1 + 2 = 3",), ("3",), 0)
    assert example.prompt == render_prompt("Add 1 and 2.")


def test_plain_instruction_data_has_no_continuation():
    message = refused([ROWS["boolq"], row("Add 1 and 2.", "3")], "continuation")
    assert "rows.json, row 2" in message and "--format instruct" in message


@pytest.mark.parametrize("fmt", ["instruct", "continuation"])
def test_rows_of_another_task_are_refused(fmt):
    message = refused([ROWS["hellaswag"], ROWS["boolq"]], fmt, "hellaswag")
    assert "not worded as a row of hellaswag" in message and "rows.json, row 2" in message


@pytest.mark.parametrize("fmt", ["instruct", "continuation"])
@pytest.mark.parametrize("task", [None, "arc-challenge"])
@pytest.mark.parametrize("answer", ["answer4", "Answer1", "true", "a", "answer1 "])
def test_an_answer_outside_the_candidates_is_refused(fmt, task, answer):
    bad = row(ROWS["arc-challenge"]["instruction"], answer)
    message = refused([ROWS["arc-challenge"], bad], fmt, task)
    assert (
        "rows.json, row 2" in message and repr(answer) in message and "answer1, answer2, answer3" in message
    )


@pytest.mark.parametrize("fmt", ["instruct", "continuation"])
@pytest.mark.parametrize("output", ["the correct answer is true", "false", "the correct answer is falsehood"])
def test_an_output_that_disagrees_with_the_answer_is_refused(fmt, output):
    message = refused([{**ROWS["boolq"], "output": output}], fmt, "boolq")
    assert "disagrees" in message and "rows.json, row 1" in message and output in message


def test_options_that_cannot_be_told_apart_are_refused_where_their_texts_are_used():
    twice = row(ROWS["arc-challenge"]["instruction"].replace("b c", "b Answer3: c"), "answer3")
    message = refused([twice], "continuation", "arc-challenge")
    assert "options cannot be told apart" in message and "Answer3: ' several times" in message
    (example,) = build_examples([twice], source="rows.json", fmt="instruct", task=get_task("arc-challenge"))
    assert example.gold == 2


SPACED = [
    ({"answer": "false "}, "remove ' ' at its end"),
    ({"answer": "\tfalse\n"}, "remove '\\t' at its start and '\\n' at its end"),
    ({"output": "the correct  answer is false"}, "write its spaces as expected"),
    ({"instruction": ROWS["boolq"]["instruction"] + " \n"}, "remove ' \\n' at its end"),
]


@pytest.mark.parametrize(("change", "fix"), SPACED)
def test_a_difference_in_space_is_shown(change, fix):
    message = refused([{**ROWS["boolq"], **change}], "instruct", "boolq")
    assert "rows.json, row 1" in message and f"to do: {fix}" in message


def test_the_end_of_a_long_instruction_is_shown():
    bad = row(ROWS["boolq"]["instruction"].replace("is it so", "is it so " * 50) + " x", "false")
    assert "true/false x'" in refused([bad], "instruct", "boolq")
