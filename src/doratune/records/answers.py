"""A run's answers to the rows of an evaluation, and the credit for each.

A row counts 1 if only the right candidate has the best score, 1/k if it shares it with k - 1 others, else 0.
Older versions did not record ties and took the first tied candidate as the answer. Their scores are stored
exactly, so their ties are found and counted when they are read.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, Field, FiniteFloat, TypeAdapter, ValidationError, model_validator

from doratune.errors import InputError
from doratune.records.files import read_jsonl
from doratune.records.run import Evaluation, Metric

MANY_TIES = 0.01
"""The share of tied rows above which they are mentioned."""


@dataclass(frozen=True)
class Counted:
    """The credit for one row.

    Attributes:
        credit: Between 0 and 1.
        tied: Number of candidates with the best score, 1 for no tie; None without scores.
    """

    credit: float
    tied: int | None


@dataclass(frozen=True)
class Scored:
    """The scores of a row's candidates.

    Attributes:
        raw: log p(candidate | prompt) of each candidate, in nats.
        per_byte: The same divided by the candidate's UTF-8 bytes.
        right: Position of the right candidate.
    """

    raw: tuple[float, ...]
    per_byte: tuple[float, ...]
    right: int


@dataclass(frozen=True)
class Answers:
    """The credits for the rows of an evaluation.

    Attributes:
        rows: By the row's number.
        given: The label given to each row, None if the text had no answer; None for predictions without
            labels.
        scored: Each row's scores; None if a row has none, or it is not known which of them is the right
            candidate's.
    """

    rows: Mapping[int, Counted]
    given: Mapping[int, str | None] | None = None
    scored: Mapping[int, Scored] | None = None

    @property
    def credits(self) -> dict[int, float]:
        """Each row's credit."""
        return {row: one.credit for row, one in self.rows.items()}

    @property
    def right(self) -> int:
        """Number of right rows, without ties."""
        return sum(one.credit == 1 for one in self.rows.values())

    @property
    def tied(self) -> int | None:
        """Number of rows on which candidates tied; None without scores."""
        known = [one.tied for one in self.rows.values() if one.tied is not None]
        return sum(count > 1 for count in known) if known else None

    @property
    def many_tied(self) -> bool:
        """Whether enough rows are tied to mention it."""
        return (self.tied or 0) > MANY_TIES * len(self.rows)

    @property
    def total(self) -> float:
        """The sum of the credits."""
        return math.fsum(one.credit for one in self.rows.values())


def counted(scores: Sequence[float], gold: int) -> Counted:
    """The credit for a row whose right candidate is ``gold``."""
    best = max(scores)
    tied = sum(score == best for score in scores)
    return Counted(1 / tied if scores[gold] == best else 0.0, tied)


def judged_by(metric: Metric) -> str:
    """The key of the scores by which a metric chooses the answer."""
    return "scores" if metric == "accuracy" else "scores_norm"


def count_rows(rows: Sequence[Mapping[str, Any]], metric: Metric) -> Answers:
    """The credit for each prediction, from any version.

    Args:
        rows: The predictions of one evaluation.
        metric: Which scores they were judged by.
    """
    key = judged_by(metric)
    places = candidate_places(rows, key)
    given = {row["row"]: row["prediction"] for row in rows if "prediction" in row}
    scored = {row["row"]: found for row in rows if (found := _scored(row, places)) is not None}
    return Answers(
        {row["row"]: _count_row(row, key, places) for row in rows},
        given if len(given) == len(rows) else None,
        scored if len(scored) == len(rows) else None,
    )


_Scores = Annotated[list[FiniteFloat], Field(min_length=1)]


class _Row(BaseModel):
    """What a prediction of any version must hold to be counted."""

    row: int = Field(ge=0)
    correct: bool
    answer: str | None = None
    prediction: str | None = None
    right: int | None = None
    tied: int | None = Field(default=None, ge=1)
    credit: float | None = Field(default=None, ge=0, le=1)
    scores: _Scores | None = None
    scores_norm: _Scores | None = None

    @model_validator(mode="after")
    def _fits(self) -> _Row:
        if self.tied is not None and self.credit is None:
            raise ValueError("tied should not be there without credit")
        both = self.scores is not None and self.scores_norm is not None
        if both and len(self.scores or ()) != len(self.scores_norm or ()):
            raise ValueError("scores and scores_norm should be of the same candidates")
        return self


_ROWS = TypeAdapter(list[_Row])


def check_rows(rows: Sequence[Mapping[str, Any]], metric: Metric, *, where: str) -> None:
    """Refuse predictions that cannot be counted, or whose credit does not follow from their scores.

    Args:
        rows: The predictions of one evaluation.
        metric: Which scores they were judged by.
        where: Their place, for the message.

    Raises:
        InputError: A field is missing or has another type, or the credit, the number of ties or the correct
            flag differs from what the scores give.
    """
    try:
        _ROWS.validate_python(rows, strict=True)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        place, *field = first["loc"]
        raise InputError(
            "a prediction cannot be counted",
            where=f"{where}, row {rows[int(place)].get('row')}",
            got=f"{'.'.join(map(str, field))}: {first['msg']}" if field else first["msg"],
        ) from None
    for row in rows:
        _check_credit(row, metric, where=f"{where}, row {row['row']}")


def _check_credit(row: Mapping[str, Any], metric: Metric, *, where: str) -> None:
    """Predictions of older versions, which do not say which candidate is right, are not checked."""
    scores, right, credit = row.get(judged_by(metric)), row.get("right"), row.get("credit")
    if not scores or right is None or credit is None:
        return
    if not 0 <= right < len(scores):
        got, expected = f"right candidate {right}", f"one of {len(scores)}"
        raise InputError("a row has no score of its right candidate", where=where, got=got, expected=expected)
    expected = counted(scores, right)
    if (credit, row.get("tied"), row["correct"]) != (expected.credit, expected.tied, expected.credit == 1):
        raise InputError(
            "the credit for a row does not follow from its scores",
            where=where,
            got=f"credit {credit}, tied {row.get('tied')}, correct {row['correct']}",
            expected=f"credit {expected.credit}, tied {expected.tied}, correct {expected.credit == 1}",
        )


def read_answers(run: Path, entry: Evaluation) -> Answers:
    """Read the predictions of an evaluation and count them.

    Raises:
        InputError: The predictions cannot be read, a row's credit does not follow from its scores, or they do
            not match the counts in the record.
    """
    path = run / entry.predictions
    rows = read_jsonl(path)
    check_rows(rows, entry.metric, where=str(path))
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
    return Counted(0.0, tied) if gold is None or gold >= len(scores) else counted(scores, gold)


def _scored(row: Mapping[str, Any], places: Mapping[str, int]) -> Scored | None:
    """A row's scores; older versions did not say which of them is the right candidate's."""
    raw, per_byte = row.get("scores"), row.get("scores_norm")
    if raw is None or per_byte is None:
        return None
    right = row.get("right")
    if right is None:
        right = places.get(row.get("answer", ""))
    if right is None or not 0 <= right < len(raw):
        return None
    return Scored(tuple(raw), tuple(per_byte), right)


def candidate_places(rows: Sequence[Mapping[str, Any]], key: str) -> dict[str, int]:
    """The position of each label among a row's candidates, as far as it can be told.

    The answer had the first best score. The position of a label that was never given is in its name: all
    tasks' labels except BoolQ's two are numbered. Of two labels, the second is where the first is not.

    Args:
        rows: The predictions of one evaluation.
        key: The scores that they were judged by.
    """
    labels = dict.fromkeys(row["answer"] for row in rows if row.get("answer"))
    numbers = {label: re.search(r"\d+$", str(label)) for label in labels}
    places = {label: int(number.group()) - 1 for label, number in numbers.items() if number}
    for row in rows:
        if row.get(key) and row.get("prediction") is not None:
            places[row["prediction"]] = row[key].index(max(row[key]))
    if all(len(row.get(key) or ()) == 2 for row in rows) and len(places) == 1:
        (known,) = places.values()
        places |= {label: 1 - known for label in labels if label not in places}
    return places
