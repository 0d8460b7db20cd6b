"""Files of rows: one JSON array, or one JSON object per line."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from doratune.data.choices import EXPECTED, KEYS, check_choice_row
from doratune.data.convert import convert_row
from doratune.data.rows import Row
from doratune.data.tasks import GENERIC, Task
from doratune.errors import InputError
from doratune.strict_json import repeated_key

_LAYOUT = 'objects with the texts "instruction", "output", "answer" and, if there is one, "input"'
_KEYS = ("instruction", "input", "output", "answer")


def read_rows(path: Path, task: Task | None = None) -> list[Row]:
    """Read a data file.

    A row with "instruction" or "output" is in the LLM-Adapters layout, which every task reads. Other rows are
    read as the task's ``row`` says, or as question, choices and answer if it has no ``row``.

    Args:
        path: A JSON file (an array of objects) or a JSONL file (an object per line; blank lines are skipped).
        task: The rows' task; None: only the LLM-Adapters layout is read.

    Returns:
        The rows with only the keys of the layout; a missing ``input`` is empty.

    Raises:
        InputError: The file cannot be read, is not JSON, or a row is not in a layout that the task reads.
    """
    text = _read_text(path)
    start = text.lstrip()[:1]
    expected = EXPECTED if task is not None and _is_generic(task) else _LAYOUT
    if not start:
        raise InputError("the data file is empty", where=str(path), expected=f"{expected}, in JSON or JSONL")
    values = _parse_lines(text, path) if start == "{" else _parse(text, path)
    if not isinstance(values, list):
        raise InputError(
            "the data file is neither a JSON array nor JSON lines",
            where=str(path),
            got=_short(values),
            expected=expected,
        )
    if not values:
        raise InputError(
            "the data file holds no rows", where=str(path), got="an empty array", expected=expected
        )
    return [
        _row(value, task, f"{path}, row {number}", expected) for number, value in enumerate(values, start=1)
    ]


def _is_generic(task: Task) -> bool:
    """Whether the task's rows are question, choices and answer."""
    return task.row is None and not task.sample


def _row(value: Any, task: Task | None, where: str, expected: str) -> Row:
    if not isinstance(value, _Object):
        raise InputError("a row is not an object", where=where, got=_short(value), expected=expected)
    if value.repeated is not None:
        key, values = value.repeated
        raise InputError(
            "a row repeats a key",
            where=where,
            got=f"{key!r} with the values {', '.join(map(_short, values))}",
            expected="each key once",
        )
    if task is None or task.sample:
        return _checked(value, where, named=task is not None)
    own = "question" in value if _is_generic(task) else task.row is not None and task.row.is_in(value)
    if not own and {"instruction", "output"} & value.keys():
        return _checked(value, where, named=True)
    return check_choice_row(value, task, where) if task.row is None else convert_row(task, value, where=where)


def _read_text(path: Path) -> str:
    if not path.exists():
        raise InputError("there is no such data file", where="--data", got=str(path))
    if path.is_dir():
        raise InputError(
            "the data is a folder", where="--data", got=str(path), expected="a JSON or JSONL file"
        )
    if not path.is_file():  # a pipe can be read once, and rows are read again by their hash
        raise InputError(
            "the data is not a regular file",
            where="--data",
            got=str(path),
            expected="a JSON or JSONL file",
            fix="write the rows to a file first",
        )
    try:
        return path.read_bytes().decode("utf-8-sig")  # tolerates the byte order mark that some editors write
    except OSError as error:
        raise InputError(
            "the data file cannot be read", where=str(path), got=error.strerror or error
        ) from error
    except UnicodeDecodeError as error:
        raise InputError(
            "the data file is not UTF-8",
            where=f"{path}, byte {error.start}",
            got=f"0x{error.object[error.start]:02x}",
            expected="a JSON or JSONL file in UTF-8",
        ) from error


def _parse_lines(text: str, path: Path) -> list[Any]:
    # Only \n ends a line: JSON texts may hold other line separators unescaped.
    lines = enumerate(text.split("\n"), start=1)
    return [_parse(line, path, number) for number, line in lines if line.strip()]


def _parse(text: str, path: Path, line: int | None = None) -> Any:
    """Parse the whole file, or the given line of it."""
    place = str(path) if line is None else f"{path}, line {line}"
    try:
        return json.loads(text, object_pairs_hook=_Object)
    except json.JSONDecodeError as error:
        place = f"{path}, line {line or error.lineno}, column {error.colno}"
        raise InputError(
            "malformed JSON", where=place, got=error.msg, expected="one JSON array, or one JSON object a line"
        ) from error
    except (RecursionError, ValueError) as error:  # nested too deeply, or a number of thousands of digits
        raise InputError("the JSON cannot be read", where=place, got=error, expected=_LAYOUT) from error


class _Object(dict[str, Any]):
    """A JSON object that remembers a repeated key, of whose values only one could be used."""

    def __init__(self, pairs: list[tuple[str, Any]]) -> None:
        super().__init__(pairs)
        self.repeated = repeated_key(pairs)


def _checked(value: dict[str, Any], where: str, *, named: bool) -> Row:
    """A row in the LLM-Adapters layout; ``named`` says whether a task was named."""
    other = not named and value.keys() >= set(KEYS)
    row = {"input": "", **value}
    for key in _KEYS:
        if key not in row:
            raise InputError(
                f"a row has no {key!r}",
                where=where,
                got=f"the keys {', '.join(value)}",
                expected=_LAYOUT,
                fix=f"add --task {GENERIC} for rows with {', '.join(KEYS)}" if other else None,
            )
        if not isinstance(row[key], str):
            raise InputError(f"{key!r} is not text", where=where, got=_short(row[key]), expected=_LAYOUT)
        if key != "input" and not row[key].strip():
            raise InputError(f"{key!r} is empty", where=where, got=repr(row[key]), expected=_LAYOUT)
        if not _is_unicode(row[key]):
            raise InputError(f"{key!r} is not valid Unicode", where=where, got="half of a surrogate pair")
    return {key: row[key] for key in _KEYS}


def _is_unicode(text: str) -> bool:
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:  # a JSON escape such as \\ud800 alone, which no tokenizer takes
        return False
    return True


def _short(value: Any) -> str:
    try:
        text = json.dumps(value)
    except RecursionError:  # read, but nested too deeply to be written
        return "an array" if isinstance(value, list) else "an object"
    return text if len(text) <= 60 else f"{text[:57]}..."
