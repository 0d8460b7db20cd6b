"""What the sample tasks share: facts from YAML, people, seeded randomness, rows and their balanced order."""

from __future__ import annotations

import random
from importlib.resources import files
from typing import Any

import yaml

Row = dict[str, str]

_SEED = 2402


def load(name: str) -> dict[str, Any]:
    """Read the facts file ``name`` (without its extension) that lies beside this module."""
    return yaml.safe_load(files("doratune.data.samples").joinpath(f"{name}.yaml").read_text(encoding="utf-8"))


def people(split: str) -> list[tuple[str, str]]:
    """First names of a split, each with its pronoun, "she" or "he"."""
    return [(name, pronoun) for pronoun, names in load("names")[split].items() for name in names]


def rng_for(task: str, split: str) -> random.Random:
    """A random generator of its own for a task and a split; the same on every platform."""
    return random.Random(f"{_SEED} {task} {split}")  # a string is hashed with SHA-512, never with hash()


def make_row(instruction: str, answer: str) -> Row:
    """A row in the LLM-Adapters layout."""
    return {
        "instruction": instruction,
        "input": "",
        "output": f"the correct answer is {answer}",
        "answer": answer,
    }


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
