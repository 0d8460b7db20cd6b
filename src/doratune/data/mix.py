"""The commonsense mix: the training rows of the original study's eight tasks, each row once.

The original study trains on one file of 170,420 rows. 63,238 of them are WinoGrande's: all of its nested
sizes (xs to xl) and its debiased part one after the other, so that most sentences come several times. Here
WinoGrande is its largest size, 40,398 rows, and repeated rows of the mix are left out.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from doratune.data.originals import find_local, load_local_rows
from doratune.data.rows import Row
from doratune.data.source import LoadedData, canonical_json, load_split, rows_sha256
from doratune.data.tasks import MIX, Task, get_task, plain_name
from doratune.errors import InputError

MIXED = (
    "boolq",
    "piqa",
    "social_i_qa",
    "hellaswag",
    "winogrande",
    "arc-easy",
    "arc-challenge",
    "openbookqa",
)
"""The tasks of the mix, in the order of the paper's table."""


@dataclass(frozen=True)
class MixedData(LoadedData):
    """The rows of several tasks.

    Attributes:
        tasks: Name of the task of each row, in the order of ``rows``.
        duplicates: How many repeated rows were left out.
    """

    tasks: list[str]
    duplicates: int

    @property
    def counts(self) -> dict[str, int]:
        """How many rows each task has."""
        counted = Counter(self.tasks)
        return {name: counted[name] for name in MIXED}


def refuse_twice(names: Sequence[str], *, where: str) -> None:
    """Refuse a task that is named twice, in any spelling or within the mix: its rows would count twice.

    Raises:
        InputError: There is one.
    """
    tasks = [plain_name(one).lower() for one in without_mix(names)]
    if repeated := sorted({one for one in tasks if tasks.count(one) > 1}):
        raise InputError("a task is named twice", where=where, got=", ".join(repeated), fix="name it once")


def load_mix(directory: Path | None = None) -> MixedData:
    """The training rows of the eight tasks, mixed.

    They are sorted by SHA-256, so the order is the same everywhere, whatever order they came in, and the
    tasks are spread evenly.

    Args:
        directory: A folder of files in the data sets' own schemas, as ``originals.find_local`` expects
            them; None: the hub.

    Raises:
        InputError: The folder lacks a task, or rows do not match their task.
        DoratuneError: The hub cannot be reached.
    """
    tasks = [get_task(name) for name in MIXED]
    if directory is None:
        rows_by_task = {task.name: load_split(task, "train").rows for task in tasks}
    else:
        rows_by_task = _local_rows(tasks, directory)
    task_of: dict[str, tuple[str, Row]] = {}
    for name, rows in rows_by_task.items():
        for row in rows:
            task_of.setdefault(hashlib.sha256(canonical_json(row).encode()).hexdigest(), (name, row))
    ordered = [task_of[digest] for digest in sorted(task_of)]
    mixed = [row for _, row in ordered]
    return MixedData(
        rows=mixed,
        source=f"hub:{MIX}" if directory is None else str(directory),
        sha256=rows_sha256(mixed),
        tasks=[name for name, _ in ordered],
        duplicates=sum(map(len, rows_by_task.values())) - len(mixed),
    )


def is_mix(name: str) -> bool:
    """Whether a name on the command line, in any case, means the mix."""
    return name.lower() == MIX


def without_mix(names: Sequence[str]) -> list[str]:
    """Names of tasks, the mix replaced by its tasks."""
    return [task for name in names for task in (MIXED if is_mix(name) else (name,))]


def _local_rows(tasks: list[Task], directory: Path) -> dict[str, list[Row]]:
    if not directory.is_dir():
        raise InputError(
            f"{MIX} is read from a folder",
            where="--data",
            got=str(directory),
            expected="a folder with the eight data sets in their own schemas, such as boolq.jsonl",
            fix="leave --data out to read them from the hub, or --task to train on a file as it is",
        )
    places = [find_local(task, directory) for task in tasks]  # all, before the first is read
    return {
        task.name: load_local_rows(task, "train", place) for task, place in zip(tasks, places, strict=True)
    }
