"""Rows of the data sets' own schemas -> rows in the LLM-Adapters layout."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from string import Formatter
from typing import Any

from doratune.data.choices import check_unicode
from doratune.data.layouts import Question
from doratune.data.rows import Row, make_row
from doratune.data.tasks import RowSchema, Task
from doratune.errors import InputError


def convert_rows(task: Task, originals: Iterable[Mapping[str, Any]], *, name: str) -> list[Row]:
    """Apply :func:`convert_row` to the rows of one split; messages call the split ``name``."""
    return [
        convert_row(task, original, where=f"{name}, row {number}")
        for number, original in enumerate(originals, start=1)
    ]


def convert_row(task: Task, original: Mapping[str, Any], *, where: str) -> Row:
    """Write one original row in the original study's wording.

    Args:
        task: A task whose definition says how rows of this data set are read.
        original: The row, by column.
        where: Its place, for messages.

    Returns:
        The row in the LLM-Adapters layout.

    Raises:
        InputError: A column is missing or is not a text, the number of options does not fit the layout, or
            the answer is not among them (as in test splits published without answers).
    """
    schema = task.row
    if schema is None:
        raise ValueError(f"the task {task.name} does not say how its rows are read")
    options = _options(task, schema, original, where)
    if not task.fits(len(options)):
        raise InputError(
            f"{task.name} does not allow this number of options",
            where=where,
            got=len(options),
            expected=" to ".join(map(str, dict.fromkeys(task.counts))),
        )
    stem = "".join(
        text + (_text(original, name, where) if name else "")
        for text, name, *_ in Formatter().parse(schema.stem)
    )
    keys = schema.answers if isinstance(schema.answers, list) else _texts(original, schema.answers, where)
    if len(keys) != len(options):
        raise InputError(
            "a row has not as many answers as options",
            where=where,
            got=f"{len(keys)} answers, {len(options)} options",
        )
    for option in options:
        if not option.strip():
            raise InputError("a row has an empty option", where=where, got=", ".join(map(repr, options)))
    check_unicode([stem, *options], where)
    answer = str(_column(original, schema.answer, where))
    if answer not in keys:
        raise InputError(
            "a row's answer is not one of its options",
            where=f"{where}, column {schema.answer}",
            got=repr(answer),
            expected=", ".join(keys),
        )
    label = task.labels[keys.index(answer)]
    return make_row(task.layout.render(Question(stem, tuple(options))), label)


def _options(task: Task, schema: RowSchema, original: Mapping[str, Any], where: str) -> list[str]:
    if schema.options is None:
        return list(task.labels)
    if isinstance(schema.options, str):
        return _texts(original, schema.options, where)
    return [_text(original, name, where) for name in schema.options]


def _column(original: Mapping[str, Any], path: str, where: str) -> Any:
    value: Any = original
    for name in path.split("."):
        if not isinstance(value, Mapping) or name not in value:
            raise InputError(
                "a column is missing",
                where=where,
                got=f"the columns {', '.join(original)}",
                expected=f"the column {path}",
            )
        value = value[name]
    return value


def _text(original: Mapping[str, Any], path: str, where: str) -> str:
    value = _column(original, path, where)
    if not isinstance(value, str):
        raise InputError(
            "a column is not text", where=f"{where}, column {path}", got=repr(value), expected="a text"
        )
    return value


def _texts(original: Mapping[str, Any], path: str, where: str) -> list[str]:
    value = _column(original, path, where)
    if not isinstance(value, list) or not all(isinstance(text, str) for text in value):
        raise InputError(
            "a column is not a list of texts",
            where=f"{where}, column {path}",
            got=repr(value),
            expected="a list of texts",
        )
    return value
