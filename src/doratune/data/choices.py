"""Rows that need no task description: a question, its choices and the right one.

``answer`` may be the 0-based index, the letter from A on, or the text of a choice. An answer that can be read
as two different choices is refused: the wrong reading would silently train on wrong answers.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from doratune.data.layouts import Question
from doratune.data.tasks import Task
from doratune.errors import InputError

EXAMPLE = '{"question": "What do bees make?", "choices": ["milk", "honey", "silk"], "answer": "honey"}'
KEYS = ("question", "choices", "answer")
EXPECTED = f"rows such as {EXAMPLE}; answer may also be the index from 0 or the letter from A"
WITHOUT_CHOICES = f"rows such as {EXAMPLE}; choices may be left out, as they are the layout's labels"


def is_choice_row(row: Mapping[str, Any]) -> bool:
    """Whether a row is in this layout, not in that of LLM-Adapters."""
    return "question" in row


def check_choice_row(row: Mapping[str, Any], task: Task, where: str) -> dict[str, Any]:
    """Check a row, and keep only its three keys.

    Args:
        row: The row as it was read.
        task: The row's task.
        where: The row's place, for messages.

    Raises:
        InputError: A key is missing or of a wrong type, choices repeat or do not fit the task, or it is not
            clear which one is right.
    """
    optional = task.layout.option is None
    expected = WITHOUT_CHOICES if optional else EXPECTED
    given = {"choices": list(task.labels), **row} if optional else row
    for key in KEYS:
        if key not in given:
            raise InputError(
                f"a row of {task.name} has no {key!r}",
                where=where,
                got=f"the keys {', '.join(map(str, row))}" if row else "no keys",
                expected=expected,
            )
    question, choices = given["question"], given["choices"]
    if not isinstance(question, str) or not question.strip():
        raise InputError("'question' is not text", where=where, got=_short(question), expected=expected)
    if not isinstance(choices, list) or not all(isinstance(one, str) and one.strip() for one in choices):
        raise InputError(
            "'choices' is not a list of texts", where=where, got=_short(choices), expected=expected
        )
    check_unicode([question, *choices], where)
    _check_choices(choices, task, where)
    right_choice(choices, given["answer"], where)
    return {key: given[key] for key in KEYS}


def right_choice(choices: Sequence[str], answer: Any, where: str) -> int:
    """The index of the choice that an answer means.

    Args:
        choices: The texts, each once.
        answer: An index from 0, a letter from A, or a text.
        where: The row's place, for messages.

    Raises:
        InputError: It matches no choice, or different ones as a text and as an index or letter.
    """
    last = chr(ord("A") + len(choices) - 1)
    readings: dict[str, int] = {}
    if isinstance(answer, str | int) and not isinstance(answer, bool):
        written = str(answer)
        if written in choices:
            readings["the text"] = choices.index(written)
        if written in map(str, range(len(choices))):
            readings["the index"] = int(written)
        if len(written) == 1 and "A" <= written <= last:
            readings["the letter"] = ord(written) - ord("A")
    if not readings:
        raise InputError(
            "a row's answer is not one of its choices",
            where=where,
            got=_short(answer),
            expected=f"an index from 0 to {len(choices) - 1}, a letter from A to {last}, or one of "
            f"{_short(list(choices))}",
        )
    if len(set(readings.values())) > 1:
        told = ", and as ".join(f"{kind} {choices[index]!r}" for kind, index in readings.items())
        raise InputError(
            "a row's answer can be read in two ways",
            where=where,
            got=f"{_short(answer)}: as {told}",
            expected="an answer that means one choice",
            fix=_clear_form(choices),
        )
    return next(iter(readings.values()))


def worded(row: Mapping[str, Any], where: str) -> tuple[Question, int]:
    """A row's question, and the index of its right option."""
    choices = row["choices"]
    return Question(row["question"], tuple(choices)), right_choice(choices, row["answer"], where)


def _check_choices(choices: list[str], task: Task, where: str) -> None:
    if not task.fits(len(choices)):
        fewest, most = task.counts
        raise InputError(
            f"{task.name} does not allow this number of choices",
            where=where,
            got=len(choices),
            expected=str(most) if fewest == most else f"{fewest} to {most}",
        )
    bare = [one.strip() for one in choices]
    repeated = next((one for one in bare if bare.count(one) > 1), None)
    if repeated is not None:
        raise InputError(
            "a row repeats a choice", where=where, got=repr(repeated), expected="each choice once"
        )
    if task.layout.option is None and tuple(choices) != task.labels:
        raise InputError(
            f"the choices of {task.name} are its labels",
            where=where,
            got=_short(choices),
            expected=_short(list(task.labels)),
            fix="leave choices out, or give the task a layout that lists its options",
        )


def check_unicode(texts: Sequence[str], where: str) -> None:
    """Refuse half of a surrogate pair, which no tokenizer takes.

    Raises:
        InputError: A text has one.
    """
    for text in texts:
        try:
            text.encode("utf-8")
        except UnicodeEncodeError:
            raise InputError(
                "a text is not valid Unicode", where=where, got="half of a surrogate pair"
            ) from None


def _clear_form(choices: Sequence[str]) -> str:
    letters = {chr(ord("A") + index) for index in range(len(choices))}
    if not letters & set(choices):
        return "give the letters of the right choices, from A on"
    if not {str(index) for index in range(len(choices))} & set(choices):
        return "give the indices of the right choices, from 0 on"
    return "give an index, letter or text that means one choice"


def _short(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False, default=str)
    return text if len(text) <= 100 else f"{text[:97]}..."
