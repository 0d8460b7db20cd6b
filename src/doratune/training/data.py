"""The rows that a run trains on."""

from __future__ import annotations

import logging
import random
from collections.abc import Sequence

from doratune.data.examples import Example, build_examples, build_mixed_examples
from doratune.data.mix import MixedData, is_mix, load_mix, refuse_twice
from doratune.data.source import LoadedData, load_file, load_split
from doratune.data.task_file import is_task_file
from doratune.data.tasks import MIX, Task, get_task, get_tasks
from doratune.errors import InputError
from doratune.records.run import DataRecord
from doratune.training.config import TrainingSettings

logger = logging.getLogger(__name__)

NAMED_ROWS = 32
"""The most rows of a task that a message names."""


def load_training_examples(config: TrainingSettings) -> tuple[list[Example], list[DataRecord]]:
    """The training rows of every task, in the chosen format.

    Args:
        config: Tasks or file, format, number of rows and seed.

    Returns:
        The examples, and the records of their sources.

    Raises:
        InputError: If neither a task nor a file is named, or a row is unusable.
    """
    if not config.task and config.data is None:
        raise InputError(
            "nothing to train on",
            where="--task, --data",
            expected="a task, a data file, or both",
            fix="see doratune train --help",
        )
    if config.data is not None and len(config.task) > 1 and not config.data.is_dir():
        raise InputError(
            "one data file can only be for one task",
            where="--task",
            got=" ".join(config.task),
            expected="one task with --data, or a folder with <task>/train.json",
        )
    if config.data is not None and not config.task:
        loaded = load_file(config.data)
        unnamed = build_examples(loaded.rows, source=loaded.source, fmt=config.format, task=None)
        sources = [(None, loaded, unnamed)]
    else:
        get_tasks([name for name in config.task if not is_mix(name)])
        refuse_twice(config.task, where="--task")
        sources = [_load_named(name, config) for name in config.task]
    examples: list[Example] = []
    records: list[DataRecord] = []
    for task, loaded, built in sources:
        examples += _draw(built, config.rows, config.seed)
        records.append(_record(task, loaded))
    return examples, records


def name_rows(examples: Sequence[Example]) -> str:
    """The numbers of rows in their sources, from 1, such as "boolq 3, 17; piqa 5"."""
    rows: dict[str, list[int]] = {}
    for example in examples:
        rows.setdefault(example.task, []).append(example.row + 1)
    parts = []
    for task, numbers in rows.items():
        shown = ", ".join(map(str, sorted(numbers)[:NAMED_ROWS]))
        more = f" and {len(numbers) - NAMED_ROWS} more" if len(numbers) > NAMED_ROWS else ""
        parts.append(f"{task} {shown}{more}".strip())
    return "; ".join(parts)


def _load_named(name: str, config: TrainingSettings) -> tuple[Task | str, LoadedData, list[Example]]:
    """A task, or the name of the mix, with rows and examples."""
    if config.data is not None and len(config.task) > 1:
        task = None if is_mix(name) else get_task(name)
        folder = task.name if task is not None and is_task_file(name) else name
        part = load_file(config.data / folder / "train.json", task)
        built = build_examples(part.rows, source=part.source, fmt=config.format, task=task)
        return task or name, part, built
    if is_mix(name):
        mix = load_mix(config.data)
        logger.info("%s: %d rows, %d repeated ones left out", MIX, len(mix.rows), mix.duplicates)
        return MIX, mix, build_mixed_examples(mix, fmt=config.format)
    task = get_task(name)
    loaded = load_split(task, "train", data=config.data)
    examples = build_examples(loaded.rows, source=loaded.source, fmt=config.format, task=task)
    return task, loaded, examples


def _record(task: Task | str | None, loaded: LoadedData) -> DataRecord:
    return DataRecord(
        task=task.name if isinstance(task, Task) else task,
        definition=task.definition if isinstance(task, Task) else None,
        source=loaded.source,
        split="train",
        sha256=loaded.sha256,
        rows=len(loaded.rows),
        parts=loaded.counts if isinstance(loaded, MixedData) else None,
    )


def _draw(examples: list[Example], rows: int | None, seed: int) -> list[Example]:
    if rows is None or rows >= len(examples):
        return examples
    chosen = random.Random(seed).sample(range(len(examples)), rows)
    return [examples[index] for index in sorted(chosen)]
