"""The rows of a study: for training, for choosing the learning rate, and for testing."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from doratune.data.choices import is_choice_row
from doratune.data.examples import build_examples
from doratune.data.mix import is_mix, load_mix
from doratune.data.rows import Row
from doratune.data.source import load_split
from doratune.data.tasks import MIX, Split, Task, get_task, get_tasks
from doratune.errors import InputError
from doratune.records.files import write_json_atomic, write_text_atomic
from doratune.records.run import DataRecord, Format, mixed, way_of_asking
from doratune.study.plan import Plan, PlanTask

DATA_NAME = "data"
FEWEST_TEST_ROWS = 2
CHARACTERS_PER_TOKEN = 4.3
"""For English and the tokenizers of current models; used only for estimates."""


@dataclass(frozen=True)
class Part:
    """Rows that the study selected from a training set and keeps in a file.

    Attributes:
        task: The rows' task; None for several tasks.
        path: The file.
        rows: The rows as they were read, in the order of the training set.
        record: Their source, with the SHA-256 of the file.
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
    """The rows that a task is tested on.

    Attributes:
        task: The task.
        data: The rows' file; None: the hub or the built-in samples.
        record: The record of all rows, before any limit.
    """

    task: Task
    data: Path | None
    record: DataRecord


@dataclass(frozen=True)
class Material:
    """All rows of one entry of the plan.

    Attributes:
        entry: The entry.
        train: The training rows, a file for each task of a mixture.
        validation: The rows on which the learning rate is chosen, a file for each task; empty if it is fixed.
        tests: The test rows of each task.
        also: The test rows of each task that shows what is forgotten.
        tokens_per_row: Tokens of a training row by format, estimated from the number of characters.
        inputs: SHA-256 of the entry's rows, before validation rows are taken out, and of the definitions of
            tasks in YAML files, by description.
        definitions: The definitions of such tasks, each with the path of the study's copy, by name.
    """

    entry: PlanTask
    train: list[Part]
    validation: list[Part]
    tests: list[Test]
    tokens_per_row: dict[Format, float]
    inputs: dict[str, str]
    also: list[Test] = field(default_factory=list)
    definitions: dict[str, tuple[Path, dict[str, Any]]] = field(default_factory=dict)

    @property
    def train_record(self) -> DataRecord:
        """The record of all training rows."""
        return mixed([part.record for part in self.train])

    @property
    def validation_record(self) -> DataRecord | None:
        """The record of all validation rows, or None."""
        return mixed([part.record for part in self.validation]) if self.validation else None

    @property
    def train_path(self) -> Path:
        """The path for a run's ``data``: the file, or the folder of a mixture's files."""
        return self.train[0].path if len(self.train) == 1 else self.train[0].path.parents[1]

    def given(self, task: str) -> str:
        """The value of a run's --task: the task's name, or the study's copy of the task's file."""
        return str(self.definitions[task][0]) if task in self.definitions else task

    def write(self) -> None:
        """Write the files of the training and validation rows, and of tasks that do not ship."""
        for part in (*self.train, *self.validation):
            part.write()
        for path, definition in self.definitions.values():
            write_json_atomic(path, definition)  # which YAML reads


@dataclass(frozen=True)
class _Source:
    """The training rows of one task, or of the commonsense mix.

    Attributes:
        name: Name of the task or mix.
        task: The task; None for the mix.
        tasks: The task of each row.
        rows: The rows.
        place: Their source, for messages and records.
        sha256: Hash of the rows.
    """

    name: str
    task: Task | None
    tasks: list[str]
    rows: list[Row]
    place: str
    sha256: str


def load_material(plan: Plan, entry: PlanTask, folder: Path) -> Material:
    """Read the rows of an entry and take the validation rows out; nothing is written.

    Args:
        plan: The plan.
        entry: One of its tasks.
        folder: The study's folder.

    Raises:
        InputError: A file cannot be used, or too few rows are left to train on.
        DoratuneError: The hub cannot be reached.
    """
    sources = [_source(plan, entry, name) for name in entry.trained_on]
    rows = [row for source in sources for row in source.rows]
    chosen = _for_validation(rows, entry.validation_rows, plan.split_seed) if entry.validation_rows else []
    held = {_question(rows[index]) for index in chosen}
    kept = {source.name: [row for row in source.rows if _question(row) not in held] for source in sources}
    emptied = [source for source in sources if not kept[source.name]]
    if emptied:
        raise InputError(
            "no row is left to train on",
            where=f"tasks, {entry.name}, validation_rows",
            got=f"{entry.validation_rows} of {len(rows)} rows of {emptied[0].place}",
            fix="lower validation_rows",
        )
    own = {task.name: task.definition for task in _tasks(plan, entry) if task.definition is not None}
    tests = [_test(plan, entry, get_task(name), entry.test_data) for name in entry.tests]
    also = [_test(plan, entry, get_task(name), None) for name in plan.also_tested(entry)]
    return Material(
        entry=entry,
        train=[
            _part(folder, entry, "train", source.name, kept[source.name], source.place, own)
            for source in sources
        ],
        validation=_validation(folder, entry, sources, rows, chosen, own),
        tests=tests,
        tokens_per_row={form: _tokens_per_row(form, sources) for form in entry.formats},
        inputs={
            **{f"training rows of {source.name}": source.sha256 for source in sources},
            **{f"test rows of {test.task.name}": test.record.sha256 for test in (*tests, *also)},
            **{f"task {name}": _digest(way_of_asking(definition)) for name, definition in own.items()},
        },
        also=also,
        definitions={
            name: (folder / DATA_NAME / "tasks" / f"{name}.yaml", definition)
            for name, definition in own.items()
        },
    )


def _tasks(plan: Plan, entry: PlanTask) -> list[Task]:
    """The tasks that are trained on or tested on, without the mix's own."""
    names = (*entry.trained_on, *entry.test, *plan.also_tested(entry))
    return get_tasks([name for name in names if not is_mix(name)])


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8")).hexdigest()


def assumed_material(plan: Plan, entry: PlanTask, folder: Path) -> Material:
    """Material without rows, made from the sizes in the plan; enough only for an estimate.

    Raises:
        InputError: The plan has no sizes.
    """
    sizes = entry.sizes
    if sizes is None:
        raise InputError("the plan does not say how large its data is", where=f"tasks, {entry.name}, sizes")

    def part(split: str, name: str, rows: int) -> Part:
        task = None if is_mix(name) else get_task(name).name
        return Part(
            task, folder, [], DataRecord(task=task, source="not loaded", split=split, sha256="", rows=rows)
        )

    held, first = entry.validation_rows or 0, entry.trained_on[0]
    each = (sizes.train_rows - held) // len(entry.trained_on)
    if each < 1:
        raise InputError(
            "validation would leave no row of each task to train on",
            where=f"tasks, {entry.name}, sizes, train_rows",
            got=f"{sizes.train_rows}, of which {held} are for validation",
            expected=f"{held + len(entry.trained_on)} or more",
        )
    test_rows = sizes.test_rows // len(entry.tests)
    return Material(
        entry=entry,
        train=[part("train", name, each) for name in entry.trained_on],
        validation=[part("validation", first, held)] if held else [],
        tests=[Test(get_task(name), None, part("test", name, test_rows).record) for name in entry.tests],
        also=[
            Test(get_task(name), None, part("test", name, test_rows).record)
            for name in plan.also_tested(entry)
        ],
        tokens_per_row=dict.fromkeys(entry.formats, float(sizes.tokens_per_row)),
        inputs={},
    )


def _validation(
    folder: Path,
    entry: PlanTask,
    sources: Sequence[_Source],
    rows: Sequence[Row],
    chosen: Sequence[int],
    own: Mapping[str, dict[str, Any]],
) -> list[Part]:
    """The chosen rows, as one part per task."""
    tasks = [task for source in sources for task in source.tasks]
    places = {task: source.place for source in sources for task in source.tasks}
    return [
        _part(
            folder,
            entry,
            "validation",
            task,
            [rows[index] for index in chosen if tasks[index] == task],
            places[task],
            own,
        )
        for task in dict.fromkeys(tasks[index] for index in chosen)
    ]


def _tokens_per_row(form: Format, sources: Sequence[_Source]) -> float:
    """Estimate from all rows, which also checks each of them."""
    examples = [
        example
        for source in sources
        for example in build_examples(source.rows, source=source.place, fmt=form, task=source.task)
    ]
    characters = sum(len(one.prompt) + len(one.candidates[one.gold]) for one in examples)
    return characters / len(examples) / CHARACTERS_PER_TOKEN


def _source(plan: Plan, entry: PlanTask, name: str) -> _Source:
    if is_mix(name):
        mix = load_mix(entry.train_data)
        return _Source(MIX, None, mix.tasks, mix.rows, _place(mix.source, entry.train_data), mix.sha256)
    task = get_task(name)
    data = entry.train_data or _file_in(plan.data, task, "train")
    loaded = load_split(task, "train", data=data)
    tasks = [task.name] * len(loaded.rows)
    return _Source(task.name, task, tasks, loaded.rows, _place(loaded.source, data), loaded.sha256)


def _test(plan: Plan, entry: PlanTask, task: Task, given: Path | None) -> Test:
    data = given or _file_in(plan.data, task, "test")
    loaded = load_split(task, "test", data=data)
    record = DataRecord(
        task=task.name,
        source=_place(loaded.source, data),
        split="test",
        sha256=loaded.sha256,
        rows=len(loaded.rows),
        definition=task.definition,
    )
    if min(len(loaded.rows), entry.eval_rows or len(loaded.rows)) < FEWEST_TEST_ROWS:
        raise InputError(
            "one test row does not tell how rows vary, so methods cannot be compared on it",
            where=f"tasks, {task.name}",
            got=f"{len(loaded.rows)} rows of {_place(loaded.source, data)}, eval_rows {entry.eval_rows}",
            expected=f"{FEWEST_TEST_ROWS} rows or more",
        )
    for form in entry.formats:  # refuses unusable rows before anything is trained
        build_examples(loaded.rows[: entry.eval_rows], source=loaded.source, fmt=form, task=task)
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
    """Indices of ``count`` rows with different questions, ascending: those with the lowest seeded hash.

    A hash makes the choice the same for every arm, seed and order of the rows. If a question occurs several
    times, its first row is taken and the others are not trained on.
    """
    first: dict[str, int] = {}
    for index, row in enumerate(rows):
        first.setdefault(_question(row), index)
    ordered = sorted(first, key=lambda question: hashlib.sha256(f"{seed}\n{question}".encode()).digest())
    return sorted(first[question] for question in ordered[:count])


def _question(row: Row) -> str:
    keys = ("question", "choices") if is_choice_row(row) else ("instruction", "input")
    return json.dumps([row[key] for key in keys], ensure_ascii=False)


def _part(
    folder: Path,
    entry: PlanTask,
    split: str,
    name: str,
    rows: list[Row],
    place: str,
    own: Mapping[str, dict[str, Any]],
) -> Part:
    """Rows of a task or of the mix, with the file for them."""
    task = None if is_mix(name) else name
    record = DataRecord(
        task=task,
        source=place,
        split=split,
        sha256=_digest(_text(rows)),
        rows=len(rows),
        definition=own.get(name),
    )
    data = folder / DATA_NAME
    if len(entry.trained_on) > 1:
        path = data / entry.name / name / f"{split}.json"
    else:
        several = [name] if split == "validation" and name != entry.name else []
        path = data / ".".join([entry.name, split, *several, "json"])
    return Part(task, path, rows, record)


def _place(source: str, data: Path | None) -> str:
    """A readable name without the machine's folders."""
    return "/".join(data.parts[-2:]) if data is not None else source


def _text(rows: Sequence[Row]) -> str:
    """A JSON array with one row per line."""
    return "[\n" + ",\n".join(json.dumps(row, ensure_ascii=False) for row in rows) + "\n]\n"
