"""Built-in sample tasks: small, made-up counterparts of BoolQ, HellaSwag and WinoGrande.

They are samples, not benchmarks: they exist to show learning within minutes, and their accuracies say nothing
about the tasks they are named after. All content is our own; rows come from the facts and templates in the
YAML files in this folder and are the same on every machine.
"""

from __future__ import annotations

from doratune.data.rows import Row
from doratune.data.samples import boolq, hellaswag, winogrande
from doratune.errors import InputError, did_you_mean

ROWS = {"train": 2000, "test": 400}
"""Rows of each split of every sample task."""

_BUILDERS = {
    "sample-boolq": boolq.build,
    "sample-hellaswag": hellaswag.build,
    "sample-winogrande": winogrande.build,
}

SAMPLE_TASKS = tuple(_BUILDERS)
"""Names of the built-in sample tasks."""


def generate(task_name: str, split: str) -> list[Row]:
    """Generate one split of a built-in sample task.

    Every prefix whose length is a multiple of the number of answers holds each answer equally often.

    Args:
        task_name: "sample-boolq", "sample-hellaswag" or "sample-winogrande".
        split: "train" (2,000 rows) or "test" (400 rows).

    Returns:
        Rows in the LLM-Adapters layout, with the keys "instruction", "input", "output" and "answer".

    Raises:
        InputError: The task or the split is not known.
    """
    if task_name not in _BUILDERS:
        raise InputError(
            "unknown sample task",
            got=task_name,
            expected=", ".join(SAMPLE_TASKS),
            fix=did_you_mean(task_name, SAMPLE_TASKS),
        )
    if split not in ROWS:
        raise InputError(
            "unknown split of a sample task", where=task_name, got=split, expected="train or test"
        )
    return _BUILDERS[task_name](split, ROWS[split])
