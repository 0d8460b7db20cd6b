"""Loading a task's rows: from a file, the built-in samples, or the hub."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path

from doratune.data.choices import EXAMPLE
from doratune.data.originals import hub_name, load_hub_rows
from doratune.data.reader import read_rows
from doratune.data.rows import Row
from doratune.data.tasks import Split, Task
from doratune.errors import InputError
from doratune.records.files import file_sha256


@dataclass(frozen=True)
class LoadedData:
    """Rows and what they were taken from.

    Attributes:
        rows: As :func:`doratune.data.reader.read_rows` gives them.
        source: The file, hub data set or built-in sample.
        sha256: SHA-256 of the file's bytes; for other sources, of the rows as canonical JSON.
    """

    rows: list[Row]
    source: str
    sha256: str


def load_file(path: Path, task: Task | None = None) -> LoadedData:
    """The rows of a JSON or JSONL file.

    Args:
        path: The file.
        task: The rows' task; None: rows of any task, in the LLM-Adapters layout.

    Raises:
        InputError: The file cannot be used.
    """
    return LoadedData(read_rows(path, task), str(path), file_sha256(path))


def load_split(task: Task, split: Split, *, data: Path | None = None) -> LoadedData:
    """A task's rows for training or testing.

    Args:
        task: The task.
        split: "train" or "test".
        data: A file to take the rows from instead.

    Raises:
        InputError: The file cannot be used, rows on the hub do not match the task, or the task's rows are in
            a file and none was given.
        DoratuneError: The hub cannot be reached.
    """
    if data is not None:
        return load_file(data, task)
    refuse_without_file(task, split)
    if task.hub is not None:
        rows, name = load_hub_rows(task, split), hub_name(task.hub, split)
    else:
        from doratune.data.samples import generate

        rows, name = generate(task.name, split), f"built-in:{task.name}"
    return LoadedData(rows, name, rows_sha256(rows))


def refuse_without_file(task: Task, split: Split, *, flag: str = "--data") -> None:
    """Refuse a task whose rows come from a file alone, where none was given.

    Args:
        task: Whose rows.
        split: Which of them.
        flag: What names the file.

    Raises:
        InputError: The task ships with no rows, or names no such split on the hub.
    """
    if task.hub is not None and split not in task.hub.splits:
        raise InputError(
            f"the task {task.name} names no {split} split on the hub",
            where=flag,
            got=f"the splits {', '.join(task.hub.splits)}",
            fix=f"name a file: {flag} FILE; in a plan {split}_data; or add the split to the task's file",
        )
    if task.hub is None and not task.sample:
        rows = {"train": "training rows", "test": "test rows"}[split]
        raise InputError(
            f"the {rows} of {task.name} are in a file, and none was given",
            where=flag,
            expected="a JSON or JSONL file" + (f" with rows such as {EXAMPLE}" if task.row is None else ""),
            fix=f"name the file: {flag} FILE; in a plan {split}_data",
        )


def rows_sha256(rows: list[Row]) -> str:
    """SHA-256 of rows as canonical JSON."""
    return hashlib.sha256(canonical_json(rows).encode("utf-8")).hexdigest()


def canonical_json(value: Row | list[Row]) -> str:
    """Rows as JSON with sorted keys, without spaces; hashed in UTF-8."""
    return json.dumps(value, ensure_ascii=False, sort_keys=True, separators=(",", ":"))
