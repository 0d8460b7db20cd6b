"""Which rows a run trains on."""

from __future__ import annotations

import random

from doratune.data.examples import Example, build_examples
from doratune.data.source import LoadedData, load_file, load_split
from doratune.data.tasks import Task, get_task
from doratune.errors import InputError
from doratune.records.run import DataRecord
from doratune.training.config import TrainingSettings


def load_training_examples(config: TrainingSettings) -> tuple[list[Example], list[DataRecord]]:
    """The training rows of every task, in the format asked for.

    Args:
        config: Tasks or file, format, number of rows and seed.

    Returns:
        The examples, and what they were taken from.

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
    if config.data is not None and len(config.task) > 1:
        raise InputError(
            "one file cannot be several tasks",
            where="--task",
            got=" ".join(config.task),
            expected="one task with --data",
        )
    sources: list[tuple[Task | None, LoadedData]]
    if config.data is not None and not config.task:
        sources = [(None, load_file(config.data))]
    else:
        tasks = [get_task(name) for name in config.task]
        sources = [(task, load_split(task, "train", data=config.data)) for task in tasks]
    examples: list[Example] = []
    records: list[DataRecord] = []
    for task, loaded in sources:
        built = build_examples(loaded.rows, source=loaded.source, fmt=config.format, task=task)
        examples += _draw(built, config.rows, config.seed)
        name = task.name if task else None
        records.append(
            DataRecord(
                task=name, source=loaded.source, split="train", sha256=loaded.sha256, rows=len(loaded.rows)
            )
        )
    return examples, records


def _draw(examples: list[Example], rows: int | None, seed: int) -> list[Example]:
    if rows is None or rows >= len(examples):
        return examples
    chosen = random.Random(seed).sample(range(len(examples)), rows)
    return [examples[index] for index in sorted(chosen)]
