"""A run's answers to the rows of an evaluation, and what each of them counts.

A row counts 1 if the right candidate alone has the best score, 1/k if it shares that with k - 1 others, else
0. Evaluations of versions before ties were recorded counted the first of the tied candidates as the answer.
Their scores are kept exactly, so that their ties are found again, and counted, when they are read.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from doratune.errors import InputError
from doratune.records.layout import read_jsonl
from doratune.records.run import Evaluation, Metric

MANY_TIES = 0.01
"""The share of tied rows above which it is said."""


@dataclass(frozen=True)
class Counted:
    """What one row counts.

    Attributes:
        credit: Between 0 and 1.
        tied: How many candidates have the best score, 1 for no tie; None without scores.
    """

    credit: float
    tied: int | None


@dataclass(frozen=True)
class Answers:
    """What the rows of an evaluation count.

    Attributes:
        rows: By the row's number.
        given: The label that was given to each row, None where a text held none; None for predictions that
            do not hold them.
    """

    rows: Mapping[int, Counted]
    given: Mapping[int, str | None] | None = None

    @property
    def credits(self) -> dict[int, float]:
        """What each row counts."""
        return {row: one.credit for row, one in self.rows.items()}

    @property
    def right(self) -> int:
        """Rows that were right, without ties."""
        return sum(one.credit == 1 for one in self.rows.values())

    @property
    def tied(self) -> int | None:
        """Rows on which candidates tied; None without scores."""
        known = [one.tied for one in self.rows.values() if one.tied is not None]
        return sum(count > 1 for count in known) if known else None

    @property
    def many_tied(self) -> bool:
        """Whether more rows are tied than goes without saying."""
        return (self.tied or 0) > MANY_TIES * len(self.rows)

    @property
    def total(self) -> float:
        """The sum of what the rows count."""
        return math.fsum(one.credit for one in self.rows.values())


def counted(scores: Sequence[float], gold: int) -> Counted:
    """What a row counts whose right candidate is ``gold``."""
    best = max(scores)
    tied = sum(score == best for score in scores)
    return Counted(1 / tied if scores[gold] == best else 0.0, tied)


def count_rows(rows: Sequence[Mapping[str, Any]], metric: Metric) -> Answers:
    """What each prediction counts, of any version.

    Args:
        rows: The predictions of one evaluation.
        metric: By which scores they were judged.
    """
    key = "scores" if metric == "accuracy" else "scores_norm"
    places = _places(rows, key)
    given = {row["row"]: row["prediction"] for row in rows if "prediction" in row}
    return Answers(
        {row["row"]: _count_row(row, key, places) for row in rows}, given if len(given) == len(rows) else None
    )


def read_answers(run: Path, entry: Evaluation) -> Answers:
    """What each row of an evaluation counts.

    Raises:
        InputError: The predictions cannot be read, or do not match the counts in the record.
    """
    path = run / entry.predictions
    rows = read_jsonl(path)
    for row in rows:
        if not isinstance(row.get("row"), int) or not isinstance(row.get("correct"), bool):
            raise InputError("a prediction has no row number or no correct flag", where=str(path), got=row)
    answers = count_rows(rows, entry.metric)
    found = {"rows": len(answers.rows), "correct": sum(row["correct"] for row in rows)}
    recorded = {"rows": entry.rows, "correct": entry.correct}
    if entry.tied is not None:
        found, recorded = found | {"tied": answers.tied}, recorded | {"tied": entry.tied}
    if found != recorded:
        raise InputError(
            "the predictions do not match the record of their run",
            where=str(path),
            got=", ".join(f"{count} {what}" for what, count in found.items()),
            expected=", ".join(f"{count} {what}" for what, count in recorded.items()),
            fix=f"evaluate {entry.task} again",
        )
    return answers


def _count_row(row: Mapping[str, Any], key: str, places: Mapping[str, int]) -> Counted:
    if row.get("tied") is not None:
        return Counted(float(row["credit"]), row["tied"])
    scores = row.get(key)
    if scores is None:
        return Counted(float(row["correct"]), None)
    tied = sum(score == max(scores) for score in scores)
    if tied == 1:
        return Counted(float(row["correct"]), 1)
    if tied == len(scores):
        return Counted(1 / tied, tied)
    gold = places.get(row.get("answer", ""))
    return Counted(0.0, tied) if gold is None else counted(scores, gold)


def _places(rows: Sequence[Mapping[str, Any]], key: str) -> dict[str, int]:
    """The place of each label among a row's candidates, which older predictions do not hold.

    The first best score was the answer. A label that was never given has its place in its name: the labels of
    all tasks are numbered, but for BoolQ's two.
    """
    numbers = {row["answer"]: re.search(r"\d+$", str(row["answer"])) for row in rows if row.get("answer")}
    places = {label: int(number.group()) - 1 for label, number in numbers.items() if number}
    for row in rows:
        if row.get(key) and row.get("prediction") is not None:
            places[row["prediction"]] = row[key].index(max(row[key]))
    return places
