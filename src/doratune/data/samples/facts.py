"""What the sample tasks share: facts from YAML, people, seeded randomness, and the balanced order of rows."""

from __future__ import annotations

import random
from typing import Any

from doratune.data.rows import Row
from doratune.named_yaml import read_shipped

_SEED = 2402


def load(name: str) -> dict[str, Any]:
    """Read the facts file ``name`` (without its extension) in this module's folder."""
    return read_shipped("doratune.data.samples", f"{name}.yaml")


def people(split: str) -> list[tuple[str, str]]:
    """First names of a split, each with its pronoun, "she" or "he"."""
    return [(name, pronoun) for pronoun, names in load("names")[split].items() for name in names]


def rng_for(task: str, split: str) -> random.Random:
    """The random generator of a task and a split; the same on every platform."""
    return random.Random(f"{_SEED} {task} {split}")  # a string is hashed with SHA-512, never with hash()


def balanced_order(rows: list[Row], rng: random.Random) -> list[Row]:
    """Shuffle rows so that each block of len(answers) consecutive rows holds every answer once.

    Args:
        rows: Rows with every answer equally often.
        rng: Source of the order.
    """
    by_answer: dict[str, list[Row]] = {}
    for row in rows:
        by_answer.setdefault(row["answer"], []).append(row)
    columns = [by_answer[answer] for answer in sorted(by_answer)]
    for column in columns:
        rng.shuffle(column)
    ordered: list[Row] = []
    for block in zip(*columns, strict=True):
        ordered.extend(rng.sample(block, len(block)))
    return ordered
