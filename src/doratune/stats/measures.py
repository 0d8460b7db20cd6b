"""Measures of a run's answers, row by row."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from doratune.records.answers import candidate_places, judged_by
from doratune.records.run import Metric


def right_answer_nll(rows: Sequence[Mapping[str, Any]], metric: Metric) -> np.ndarray | None:
    """The negative log-likelihood of each row's right answer among its candidates, in nats.

    The likelihood of a candidate is the softmax of the scores, which are log-probabilities of whole answers.

    Args:
        rows: The predictions of one evaluation.
        metric: By which scores its answers were chosen.

    Returns:
        (rows,) float; None if a row has no scores, as in generated answers, or its right candidate is
        unknown.
    """
    places = candidate_places(rows, judged_by(metric))
    if not all(row.get("scores") and row.get("answer") in places for row in rows):
        return None
    right = [row["scores"][places[row["answer"]]] for row in rows]
    every = [np.logaddexp.reduce(row["scores"]) for row in rows]
    return np.maximum(np.array(every) - np.array(right), 0.0)
