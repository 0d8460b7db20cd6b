"""The rows of a study: what is trained on, what the learning rate is chosen on, and what is tested on."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from doratune.data.examples import build_examples
from doratune.data.mix import is_mix, load_mix
from doratune.data.rows import Row
from doratune.data.source import load_split, rows_sha256
from doratune.data.tasks import Split, Task, get_task
from doratune.errors import InputError
from doratune.records.layout import write_text_atomic
from doratune.records.run import DataRecord, Format
from doratune.study.plan import Plan, PlanTask

DATA_NAME = "data"
CHARACTERS_PER_TOKEN = 4.3
"""Of English under the tokenizers of today's models, for estimates only."""


@dataclass(frozen=True)
class Part:
    """Rows that the study took out of a training set and keeps in a file of its own.

    Attributes:
        task: Whose rows; None for those of several tasks.
        path: The file.
        rows: In the LLM-Adapters layout, in the order of the training set.
        record: Where they are from, with the SHA-256 of the file.
    """

    task: str | None
    path: Path
    rows: list[Row]
    record: DataRecord

    def write(self) -> None:
        """Write the file, unless it is there already."""
        text = _text(self.rows)
        if not self.path.is_file() or self.path.read_bytes() != text.encode("utf-8"):
            write_text_atomic(self.path, text)


@dataclass(frozen=True)
class Test:
    """Rows that results are taken from.

    Attributes:
        task: Whose rows.
        data: The file they are in; None: the hub or the built-in samples.
        record: All of them, before any limit.
    """

    task: Task
    data: Path | None
    record: DataRecord


@dataclass(frozen=True)
class Material:
    """All rows of one entry of the plan.

    Attributes:
        entry: The entry.
        train: What is trained on.
        validation: What the learning rate is chosen on, a file for each task.
        validation_record: All of it.
        tests: What results are taken from, by task.
        tokens_per_row: Of the training rows by format, by the number of their characters.
    """

    entry: PlanTask
    train: Part
    validation: list[Part]
    validation_record: DataRecord
    tests: list[Test]
    tokens_per_row: dict[Format, float]

    def write(self) -> None:
        """Write the files of the training and validation rows."""
        for part in (self.train, *self.validation):
            part.write()


def load_material(plan: Plan, entry: PlanTask, folder: Path) -> Material:
    """Read the rows of an entry and split its training set; nothing is written.

    Args:
        plan: The plan.
        entry: One of its tasks.
        folder: The study's folder.

    Raises:
        InputError: A file cannot be used, or too few rows are left to train on.
        DoratuneError: The hub cannot be reached.
    """
    tasks, rows, source = _training_set(plan, entry)
    chosen = _for_validation(rows, entry.validation_rows, plan.split_seed)
    held = {_question(rows[index]) for index in chosen}
    kept = [index for index, row in enumerate(rows) if _question(row) not in held]
    if not kept:
        raise InputError(
            "no row is left to train on",
            where=f"tasks, {entry.train}, validation_rows",
            got=f"{entry.validation_rows} of {len(rows)} rows of {source}",
            fix="lower validation_rows",
        )
    validation = [
        _part(folder, entry, "validation", task, [rows[i] for i in chosen if tasks[i] == task], source)
        for task in dict.fromkeys(tasks[index] for index in chosen)
    ]
    return Material(
        entry=entry,
        train=_part(folder, entry, "train", None, [rows[index] for index in kept], source),
        validation=validation,
        validation_record=_whole(validation, [rows[index] for index in chosen]),
        tests=[_test(plan, entry, get_task(name)) for name in entry.tests],
        tokens_per_row={form: _tokens_per_row(entry, form, rows, source) for form in entry.formats},
    )


def assumed_material(entry: PlanTask, folder: Path) -> Material:
    """The sizes that the plan gives for rows that are not at hand: enough for an estimate only.

    Raises:
        InputError: The plan gives none.
    """
    sizes = entry.sizes
    if sizes is None:
        raise InputError("the plan does not say how large its data is", where=f"tasks, {entry.train}, sizes")

    def record(split: str, rows: int) -> DataRecord:
        return DataRecord(task=_only(entry), source="not loaded", split=split, sha256="", rows=rows)

    validation = record("validation", entry.validation_rows)
    each = sizes.test_rows // len(entry.tests)
    return Material(
        entry=entry,
        train=Part(_only(entry), folder, [], record("train", sizes.train_rows - entry.validation_rows)),
        validation=[Part(_only(entry), folder, [], validation)],
        validation_record=validation,
        tests=[Test(get_task(name), None, record("test", each)) for name in entry.tests],
        tokens_per_row=dict.fromkeys(entry.formats, float(sizes.tokens_per_row)),
    )


def _tokens_per_row(entry: PlanTask, form: Format, rows: list[Row], source: str) -> float:
    """Estimated from all rows, each of which is checked on the way."""
    task = None if is_mix(entry.train) else get_task(entry.train)
    examples = build_examples(rows, source=source, fmt=form, task=task)
    characters = sum(len(one.prompt) + len(one.candidates[one.gold]) for one in examples)
    return characters / len(examples) / CHARACTERS_PER_TOKEN


def _training_set(plan: Plan, entry: PlanTask) -> tuple[list[str], list[Row], str]:
    """The task of each row, the rows, and what they were taken from."""
    if is_mix(entry.train):
        mix = load_mix(entry.train_data)
        return mix.tasks, mix.rows, _place(mix.source, entry.train_data)
    task = get_task(entry.train)
    data = entry.train_data or _file_in(plan.data, task, "train")
    loaded = load_split(task, "train", data=data)
    return [task.name] * len(loaded.rows), loaded.rows, _place(loaded.source, data)


def _test(plan: Plan, entry: PlanTask, task: Task) -> Test:
    data = entry.test_data or _file_in(plan.data, task, "test")
    loaded = load_split(task, "test", data=data)
    record = DataRecord(
        task=task.name,
        source=_place(loaded.source, data),
        split="test",
        sha256=loaded.sha256,
        rows=len(loaded.rows),
    )
    for form in entry.formats:  # refuses what cannot be asked, before anything is trained
        build_examples(loaded.rows[: entry.limit], source=loaded.source, fmt=form, task=task)
    return Test(task, data, record)


def _file_in(folder: Path | None, task: Task, split: Split) -> Path | None:
    """The file of a task in a folder of the LLM-Adapters layout; samples are built in."""
    if folder is None or task.sample:
        return None
    if not folder.is_dir():
        raise InputError("there is no such data folder", where="--data", got=folder)
    found = [one for one in sorted(folder.iterdir()) if one.name.lower() == task.name and one.is_dir()]
    if not found or not (found[0] / f"{split}.json").is_file():
        raise InputError(
            f"the data folder holds no {split} rows of {task.title}",
            where=str(folder),
            expected=f"{task.name}/{split}.json",
            fix=f"add the file, or name it with {split}_data in the plan",
        )
    return found[0] / f"{split}.json"


def _for_validation(rows: Sequence[Row], count: int, seed: int) -> list[int]:
    """Rows with ``count`` different questions, ascending: those whose hash with the seed is lowest.

    A hash makes the choice the same for every arm, seed and order of the rows. Where a question comes several
    times its first row is taken, and the others may not be trained on.
    """
    first: dict[str, int] = {}
    for index, row in enumerate(rows):
        first.setdefault(_question(row), index)
    ordered = sorted(first, key=lambda question: hashlib.sha256(f"{seed}\n{question}".encode()).digest())
    return sorted(first[question] for question in ordered[:count])


def _question(row: Row) -> str:
    return json.dumps([row["instruction"], row["input"]], ensure_ascii=False)


def _part(folder: Path, entry: PlanTask, split: str, task: str | None, rows: list[Row], source: str) -> Part:
    several = [task] if split == "validation" and task is not None and task != _only(entry) else []
    name = ".".join([entry.train.lower(), split, *several, "json"])
    digest = hashlib.sha256(_text(rows).encode("utf-8")).hexdigest()
    owner = task or _only(entry)
    record = DataRecord(task=owner, source=source, split=split, sha256=digest, rows=len(rows))
    return Part(owner, folder / DATA_NAME / name, rows, record)


def _whole(parts: list[Part], rows: list[Row]) -> DataRecord:
    """The record of all validation rows."""
    first = parts[0].record
    if len(parts) == 1:
        return first
    return first.model_copy(update={"task": None, "sha256": rows_sha256(rows), "rows": len(rows)})


def _only(entry: PlanTask) -> str | None:
    """The one task that is trained on, or None."""
    return None if is_mix(entry.train) else get_task(entry.train).name


def _place(source: str, data: Path | None) -> str:
    """A name for people, without the machine's folders."""
    return "/".join(data.parts[-2:]) if data is not None else source


def _text(rows: Sequence[Row]) -> str:
    """A JSON array with a row a line."""
    return "[\n" + ",\n".join(json.dumps(row, ensure_ascii=False) for row in rows) + "\n]\n"
