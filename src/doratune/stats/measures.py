"""Measures of a run's answers that tell more than right or wrong, one value per row.

p(candidate) is the softmax of the scores of a row's candidates: how probable the model finds each, given that
the answer is one of them. All measures take the scores of whole answers; ``right_answer_nll`` can also take
the scores per byte, by which ``accuracy_norm`` judges.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from doratune.errors import InputError
from doratune.records.answers import Scored, counted
from doratune.records.run import RowMeasures
from doratune.records.study import MeasureDifference, MeasureMean, RowMeasure
from doratune.stats.spread import Block, spread_of

BINS = 10
"""Bins of equal width between 0 and 1 for the calibration error."""


def right_answer_nll(rows: Sequence[Scored], *, per_byte: bool = False) -> np.ndarray:
    """The negative log-likelihood of each row's right candidate among its candidates, in nats, (rows,).

    Args:
        rows: The scored rows.
        per_byte: Take the softmax of the scores per byte.

    Raises:
        InputError: There are no rows.
    """
    return -_log_probabilities(rows, per_byte=per_byte)[np.arange(len(rows)), _right(rows)]


def brier_score(rows: Sequence[Scored]) -> np.ndarray:
    """Each row's Brier score, (rows,): the sum over candidates of (p - 1 if right, else p)², from 0 to 2.

    Raises:
        InputError: There are no rows.
    """
    found = np.exp(_log_probabilities(rows))
    found[np.arange(len(rows)), _right(rows)] -= 1
    return (found**2).sum(axis=1)


def calibration(rows: Sequence[Scored]) -> tuple[float, float]:
    """The expected calibration error and the mean confidence of a run.

    A row's confidence is the probability of its most probable candidate. The error is the mean over rows of
    how far a bin's mean confidence is from the share of its rows that are right, with ``BINS`` bins.

    Raises:
        InputError: There are no rows.
    """
    confidence = np.exp(_log_probabilities(rows).max(axis=1))
    credit = np.array([counted(row.raw, row.right).credit for row in rows])
    places = np.minimum((confidence * BINS).astype(int), BINS - 1)
    gaps = np.bincount(places, weights=confidence - credit, minlength=BINS)
    return float(np.abs(gaps).sum() / len(rows)), float(confidence.mean())


def row_values(rows: Sequence[Scored]) -> dict[RowMeasure, np.ndarray]:
    """Every measure of each row, (rows,).

    Raises:
        InputError: There are no rows.
    """
    return {
        "nll": right_answer_nll(rows),
        "nll_per_byte": right_answer_nll(rows, per_byte=True),
        "brier": brier_score(rows),
    }


def run_measures(rows: Sequence[Scored]) -> RowMeasures:
    """The measures of a run, for its record.

    Raises:
        InputError: There are no rows.
    """
    values = row_values(rows)
    error, confidence = calibration(rows)
    return RowMeasures(
        **{measure: float(one.mean()) for measure, one in values.items()},
        calibration_error=error,
        confidence=confidence,
    )


def measure_mean(values: np.ndarray) -> MeasureMean:
    """The mean of a measure over seeds and rows, with its interval.

    Args:
        values: (seeds, rows), at least two rows.
    """
    return MeasureMean(mean=float(values.mean()), interval=spread_of([Block(values)]).interval)


def measure_difference(first: np.ndarray, second: np.ndarray) -> MeasureDifference:
    """The second minus the first, paired by seed and row.

    Args:
        first: (seeds, rows), at least two rows.
        second: The same, with the same seeds and rows in the same order.
    """
    values = second - first
    spread = spread_of([Block(values)])
    return MeasureDifference(mean=float(values.mean()), interval=spread.interval, p_value=spread.p_value)


def _log_probabilities(rows: Sequence[Scored], *, per_byte: bool = False) -> np.ndarray:
    """(rows, candidates of the longest row); -inf where a row has fewer."""
    if not rows:
        raise InputError("no measure can be computed", got="no rows", expected="at least one row")
    scores = [row.per_byte if per_byte else row.raw for row in rows]
    table = np.full((len(rows), max(map(len, scores))), -np.inf)
    for place, row in enumerate(scores):
        table[place, : len(row)] = row
    table -= table.max(axis=1, keepdims=True)  # scipy's log_softmax is the same, but slow to import
    return table - np.log(np.exp(table).sum(axis=1, keepdims=True))


def _right(rows: Sequence[Scored]) -> np.ndarray:
    return np.array([row.right for row in rows])
