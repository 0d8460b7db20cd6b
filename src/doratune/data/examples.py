"""Rows -> examples: a prompt, its candidate completions, and which of them is right."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from doratune.data.choices import is_choice_row, worded
from doratune.data.layouts import Layout, Question, layouts, recognise
from doratune.data.mix import MixedData
from doratune.data.rows import Row, answer_text, render_prompt
from doratune.data.tasks import Task, get_task
from doratune.errors import InputError
from doratune.records.run import Format


@dataclass(frozen=True)
class Example:
    """One row, ready to be encoded. Training text = prompt + candidates[gold] + end of sequence.

    Attributes:
        row: Index in its source, from 0.
        task: Name of the task, empty if none was named.
        prompt: The full text before the answer.
        candidates: The completions to choose from.
        labels: What the candidates are called, such as "true" or "answer1".
        gold: Index of the right candidate.
    """

    row: int
    task: str
    prompt: str
    candidates: tuple[str, ...]
    labels: tuple[str, ...]
    gold: int


def build_examples(rows: Sequence[Row], *, source: str, fmt: Format, task: Task | None) -> list[Example]:
    """Turn rows into examples.

    Args:
        rows: As :func:`doratune.data.source.load_split` gives them.
        source: What they were taken from, for messages.
        fmt: "instruct": the instruction as it is, with "the correct answer is <label>" as candidates.
            "continuation": the question without its options, with the answers' own texts as candidates.
        task: The rows' task. None for a file without a task: each row's layout is then recognised by its
            wording, and in the instruct format a row in no known layout is plain instruction data, whose
            output is the only candidate.

    Raises:
        InputError: A row is not in the layout, its answer is not among its candidates, its output disagrees
            with its answer, or it is not clear where its options begin.
    """
    known = list(layouts().values()) if task is None else [task.layout]
    return [_example(index, row, source, fmt, task, known) for index, row in enumerate(rows)]


def build_mixed_examples(mix: MixedData, *, fmt: Format) -> list[Example]:
    """Turn the rows of a mix into examples, each with its own task."""
    tasks = [get_task(name) for name in mix.tasks]
    return [
        _example(index, row, mix.source, fmt, task, [task.layout])
        for index, (row, task) in enumerate(zip(mix.rows, tasks, strict=True))
    ]


def _example(
    index: int, row: Row, source: str, fmt: Format, task: Task | None, known: list[Layout]
) -> Example:
    where = f"{source}, row {index + 1}"
    if task is not None and is_choice_row(row):
        return _choice_example(index, row, where, fmt, task)
    found = recognise(row["instruction"], known)
    if found is None and (task is not None or fmt == "continuation"):
        raise _unrecognised(row, where, task)
    if found is None:
        instruction, candidates, labels, gold = row["instruction"], (row["output"],), (row["answer"],), 0
    else:
        labels, gold = _labels(row, *found, where=where)
        instruction, candidates = _worded(row, *found, labels=labels, fmt=fmt, where=where)
    name = task.name if task else ""
    return Example(index, name, render_prompt(instruction, row["input"]), candidates, labels, gold)


def _choice_example(index: int, row: Row, where: str, fmt: Format, task: Task) -> Example:
    question, gold = worded(row, where)
    labels = task.labels[: len(question.options)]
    if fmt == "instruct":
        instruction = task.layout.render(question)
        candidates = tuple(answer_text(label) for label in labels)
    else:
        instruction, candidates = task.layout.continue_from(question)
        if len({*candidates} - {""}) < len(candidates):
            raise InputError(
                "a row's choices are the same or empty once the layout has cleaned them",
                where=where,
                got=", ".join(map(repr, candidates)),
                expected="different texts",
                fix="change the layout's clean, or use --format instruct",
            )
    return Example(index, task.name, render_prompt(instruction), candidates, labels, gold)


def _labels(row: Row, layout: Layout, question: Question, *, where: str) -> tuple[tuple[str, ...], int]:
    """The labels of a row's candidates, and the index of the right one."""
    labels = tuple(layout.labels[: len(question.options)])
    answer = row["answer"]
    if answer not in labels:
        raise InputError(
            "a row's answer is not one of its candidates",
            where=where,
            got=repr(answer),
            expected=", ".join(labels),
            fix=next(filter(None, (_space_difference(answer, label) for label in labels)), None),
        )
    if row["output"].strip() != answer_text(answer):
        raise InputError(
            "a row's output disagrees with its answer",
            where=where,
            got=repr(_short(row["output"])),
            expected=repr(answer_text(answer)),
            fix=_space_difference(row["output"], answer_text(answer)),
        )
    return labels, labels.index(answer)


def _worded(
    row: Row, layout: Layout, question: Question, *, labels: tuple[str, ...], fmt: Format, where: str
) -> tuple[str, tuple[str, ...]]:
    """Instruction and candidates of a row in a known layout."""
    if fmt == "instruct":
        return row["instruction"], tuple(answer_text(label) for label in labels)
    twice = layout.ambiguity(row["instruction"])
    if twice is not None:
        raise InputError(
            "a row's options cannot be told apart",
            where=where,
            got=f"{twice!r} several times",
            expected="each once, where the option begins",
            fix="reword the question or its options, or use --format instruct",
        )
    return layout.continue_from(question)


def _unrecognised(row: Row, where: str, task: Task | None) -> InputError:
    got = repr(_short(row["instruction"]))
    if task is None:
        return InputError(
            "a row is in no known layout, so its candidate answers are unknown",
            where=where,
            got=got,
            expected="an instruction in the wording of one of the tasks",
            fix="use --format instruct",
        )
    trimmed = row["instruction"].strip()
    return InputError(
        f"a row is not worded as a row of {task.name}",
        where=where,
        got=got,
        expected=repr(task.layout.template),
        fix=_space_difference(row["instruction"], trimmed) if task.layout.parse(trimmed) else None,
    )


def _space_difference(text: str, wanted: str) -> str | None:
    """The fix for a text that differs from the wanted one only in its spaces; None for any other."""
    if text == wanted or text.split() != wanted.split():
        return None
    before, after = text[: len(text) - len(text.lstrip())], text[len(text.rstrip()) :]
    places = [f"{side!r} at its {place}" for side, place in ((before, "start"), (after, "end")) if side]
    return f"remove {' and '.join(places)}" if text.strip() == wanted else "write its spaces as expected"


def _short(text: str) -> str:
    """Both ends, where wordings differ from one another."""
    return text if len(text) <= 100 else f"{text[:60]}...{text[-37:]}"
