"""Measures per row: compared with scipy on each row, and with their definitions on rows that are known."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy.special import log_softmax, softmax

from doratune.errors import InputError
from doratune.records.answers import Scored, count_rows
from doratune.stats.measures import (
    brier_score,
    calibration,
    measure_difference,
    right_answer_nll,
    run_measures,
)


def drawn(rows: int, seed: int = 0) -> list[Scored]:
    """Rows of two to five candidates."""
    random = np.random.default_rng(seed)
    found = []
    for _ in range(rows):
        count = int(random.integers(2, 6))
        raw = random.normal(-20, 4, count)
        found.append(
            Scored(tuple(raw), tuple(raw / random.integers(3, 40, count)), right=int(random.integers(count)))
        )
    return found


def test_every_row_is_as_scipy_computes_it_alone() -> None:
    rows = drawn(200)
    for key in ("raw", "per_byte"):
        expected = [-log_softmax(getattr(row, key))[row.right] for row in rows]
        np.testing.assert_allclose(right_answer_nll(rows, per_byte=key == "per_byte"), expected, rtol=1e-12)
    for row, found in zip(rows, brier_score(rows), strict=True):
        p = softmax(row.raw)
        assert found == pytest.approx(((p - np.eye(len(p))[row.right]) ** 2).sum(), rel=1e-12)


def test_a_constant_added_to_all_scores_of_a_row_changes_nothing() -> None:
    rows = drawn(50)
    moved = [Scored(tuple(s + 300 for s in row.raw), row.per_byte, row.right) for row in rows]
    np.testing.assert_allclose(right_answer_nll(moved), right_answer_nll(rows), atol=1e-9)
    np.testing.assert_allclose(brier_score(moved), brier_score(rows), atol=1e-9)
    assert calibration(moved) == pytest.approx(calibration(rows), abs=1e-9)


def test_rows_that_are_known() -> None:
    even = Scored((-3.0, -3.0), (-1.0, -1.0), 1)
    sure = Scored((0.0, -1e30), (0.0, -1e30), 0)
    wrong = Scored((0.0, -800.0), (0.0, -80.0), 1)
    assert right_answer_nll([even, sure, wrong]).tolist() == pytest.approx([math.log(2), 0.0, 800.0])
    assert brier_score([even, sure, wrong]).tolist() == pytest.approx([0.5, 0.0, 2.0])
    # Sure, right and wrong in equal parts: confidence 1, accuracy 1/2. A tie counts 1/2 at confidence 1/2.
    assert calibration([sure, wrong]) == pytest.approx((0.5, 1.0))
    assert calibration([even]) == pytest.approx((0.0, 0.5))


def test_a_calibrated_model_has_hardly_any_calibration_error() -> None:
    random = np.random.default_rng(1)
    rows = []
    for _ in range(20_000):
        raw = random.normal(0, 2, 4)
        rows.append(Scored(tuple(raw), tuple(raw), int(random.choice(4, p=softmax(raw)))))
    assert calibration(rows)[0] < 0.015
    hot = [Scored(tuple(3 * s for s in row.raw), row.per_byte, row.right) for row in rows]
    error, confidence = calibration(hot)
    credit = np.mean([np.argmax(row.raw) == row.right for row in rows])
    # Too sure in every bin, so that the error is the whole gap.
    assert error == pytest.approx(confidence - credit, abs=0.01) and error > 0.1


def test_no_rows_are_refused() -> None:
    with pytest.raises(InputError, match="no measure"):
        run_measures([])


PREDICTIONS = [
    {"row": 0, "answer": "answer2", "prediction": "answer1", "correct": False},
    {"row": 1, "answer": "answer1", "prediction": "answer1", "correct": True},
]
SCORES = [
    {"scores": [-1.0, -2.0], "scores_norm": [-0.5, -0.2]},
    {"scores": [-1.0, -3.0], "scores_norm": [0, 0]},
]


def test_rows_of_older_versions_have_the_place_of_their_answer_in_its_name() -> None:
    rows = [row | scores for row, scores in zip(PREDICTIONS, SCORES, strict=True)]
    scored = count_rows(rows, "accuracy").scored
    assert scored is not None and {row: one.right for row, one in scored.items()} == {0: 1, 1: 0}
    new = [row | {"right": 1} for row in rows]  # newer versions say it
    scored = count_rows(new, "accuracy").scored
    assert scored is not None and [one.right for one in scored.values()] == [1, 1]


def test_rows_without_scores_or_without_a_place_have_no_measure() -> None:
    assert count_rows(PREDICTIONS, "accuracy").scored is None
    three = {"scores": [-1.0, -2.0, -3.0], "scores_norm": [-1.0, -2.0, -3.0]}
    unknown = [PREDICTIONS[0] | three | {"answer": "Paris"}, PREDICTIONS[1] | three]
    assert count_rows(unknown, "accuracy").scored is None


def simulated(random: np.random.Generator, seeds: int, rows: int, gain: float) -> tuple[np.ndarray, ...]:
    """Scores of two arms, (seeds, rows, 4); the first candidate is right, and easier for the second arm."""
    shared = random.normal(0, 1, (rows, 4))
    shared[:, 0] += 0.8 + random.normal(0, 1.2, rows)
    found = []
    for more in (0.0, gain):
        scores = shared + random.normal(0, 0.5, (seeds, rows, 4))
        scores[:, :, 0] += more + random.normal(0, 0.02, (seeds, 1))
        found.append(scores)
    return tuple(found)


def by_measure(scores: np.ndarray) -> dict[str, np.ndarray]:
    scored = [Scored(tuple(row), tuple(row), 0) for one in scores for row in one]
    accuracy = (scores.argmax(axis=2) == 0).astype(float)
    shape = scores.shape[:2]
    return {
        "accuracy": accuracy,
        "nll": right_answer_nll(scored).reshape(shape),
        "brier": brier_score(scored).reshape(shape),
    }


def test_simulated_studies_hold_coverage_and_need_fewer_rows_than_accuracy() -> None:
    """Five seeds and 200 rows; the truth is the mean over many more rows."""
    random = np.random.default_rng(0)
    first, second = (by_measure(one) for one in simulated(random, 20, 4000, 0.1))
    truth = {measure: float((second[measure] - first[measure]).mean()) for measure in first}
    found: dict[str, list[float]] = {measure: [] for measure in truth}
    held = dict.fromkeys(truth, 0)
    for _ in range(120):
        first, second = (by_measure(one) for one in simulated(random, 5, 200, 0.1))
        for measure, right in truth.items():
            one = measure_difference(first[measure], second[measure])
            held[measure] += one.interval[0] <= right <= one.interval[1]
            found[measure].append(one.mean)
    assert held["nll"] >= 0.9 * 120 and held["brier"] >= 0.9 * 120
    # How far a study's difference is from zero in its own spread; its square is in proportion to the rows.
    signal = {measure: (truth[measure] / np.std(found[measure])) ** 2 for measure in truth}
    assert 1.8 < signal["nll"] / signal["accuracy"] < 6
    assert 1.4 < signal["brier"] / signal["accuracy"] < 5


def test_a_difference_does_not_depend_on_what_both_arms_share() -> None:
    random = np.random.default_rng(3)
    first, rows = random.normal(size=(3, 50)), 10 * random.normal(size=50)
    second = first + random.normal(0.2, 0.1, (3, 50))
    plain, moved = measure_difference(first, second), measure_difference(first + rows, second + rows)
    assert moved.mean == pytest.approx(plain.mean) and moved.interval == pytest.approx(plain.interval)
    assert plain.interval[0] < plain.mean < plain.interval[1] and plain.p_value < 0.01
