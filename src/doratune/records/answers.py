"""What a run directory holds besides its record: which rows were right, and how the loss went."""

from __future__ import annotations

from pathlib import Path

from doratune.errors import InputError
from doratune.records.layout import METRICS_NAME, read_jsonl
from doratune.records.run import Evaluation


def correct_rows(run: Path, entry: Evaluation) -> dict[int, bool]:
    """For each row, whether the run had it right.

    Raises:
        InputError: The predictions cannot be read, or do not match the counts in the record.
    """
    path = run / entry.predictions
    correct = {}
    for row in read_jsonl(path):
        if not isinstance(row.get("row"), int) or not isinstance(row.get("correct"), bool):
            raise InputError("a prediction has no row number or no correct flag", where=str(path), got=row)
        correct[row["row"]] = row["correct"]
    found = (len(correct), sum(correct.values()))
    if found != (entry.rows, entry.correct):
        raise InputError(
            "the predictions do not match the record of their run",
            where=str(path),
            got=f"{found[0]} rows, {found[1]} correct",
            expected=f"{entry.rows} rows, {entry.correct} correct",
            fix=f"evaluate {entry.task} again",
        )
    return correct


def training_curve(run: Path) -> list[tuple[int, float | None]]:
    """The training loss by step, None where it was not finite.

    Raises:
        InputError: The metrics cannot be read.
    """
    path = run / METRICS_NAME
    points = [row for row in read_jsonl(path) if "loss" in row]
    for row in points:
        if not isinstance(row.get("step"), int) or not isinstance(row["loss"], int | float | None):
            raise InputError("a line has no step or no loss that is a number", where=str(path), got=row)
    return [(row["step"], row["loss"]) for row in points]
