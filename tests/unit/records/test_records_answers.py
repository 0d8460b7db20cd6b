"""What a row counts: ties share it, whatever version wrote the predictions."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from doratune.errors import InputError
from doratune.records.answers import Answers, Counted, check_rows, count_rows, counted, read_answers
from doratune.records.files import write_jsonl_atomic
from doratune.records.run import Evaluation

from synthetic_runs import evaluation  # isort: skip


@pytest.mark.parametrize(
    ("scores", "gold", "credit", "tied"),
    [
        ([-1.0, -2.0], 0, 1.0, 1),
        ([-1.0, -2.0], 1, 0.0, 1),
        ([-1.0, -1.0], 0, 0.5, 2),
        ([-1.0, -1.0], 1, 0.5, 2),
        ([-1.0, -1.0, -1.0, -4.0], 2, 1 / 3, 3),
        ([-1.0, -1.0, -1.0, -4.0], 3, 0.0, 3),
        ([-1.0, -1.0 - 1e-7], 1, 0.0, 1),  # float32 tells them apart
    ],
)
def test_a_row_with_ties_counts_a_fraction(scores: list[float], gold: int, credit: float, tied: int) -> None:
    assert counted(scores, gold) == Counted(credit, tied)


def old(row: int, answer: str, labels: list[str], scores: list[float]) -> dict[str, Any]:
    """A prediction as it was written before ties were recorded: the first best score is the answer."""
    prediction = labels[scores.index(max(scores))]
    halves = [score / 2 for score in scores]
    return {
        "row": row,
        "answer": answer,
        "prediction": prediction,
        "correct": prediction == answer,
        "scores": scores,
        "scores_norm": halves,
        "text": None,
    }


ENDINGS = [f"ending{number}" for number in (1, 2, 3, 4)]


def test_ties_of_older_predictions_are_found_again() -> None:
    rows = [
        old(0, "true", ["true", "false"], [-1.0, -1.0]),  # counted as right
        old(1, "false", ["true", "false"], [-1.0, -1.0]),  # counted as wrong
        old(2, "true", ["true", "false"], [-1.0, -2.0]),
    ]
    assert count_rows(rows, "accuracy").credits == {0: 0.5, 1: 0.5, 2: 1.0}
    # No row was given the third ending, so only its name tells where it stood.
    endings = [
        old(0, "ending3", ENDINGS, [-1.0, -2.0, -1.0, -3.0]),
        old(1, "ending4", ENDINGS, [-1.0, -2.0, -1.0, -3.0]),
        old(2, "ending2", ENDINGS, [-2.0, -1.0, -1.0, -1.0]),
    ]
    found = count_rows(endings, "accuracy_norm")
    assert found.credits == {0: 0.5, 1: 0.0, 2: pytest.approx(1 / 3)}
    assert (found.tied, found.right, found.many_tied) == (3, 0, True)


def test_generated_answers_have_no_ties() -> None:
    rows = [{"row": 0, "answer": "a", "prediction": None, "correct": False, "scores": None, "text": "x"}]
    assert count_rows(rows, "accuracy") == Answers({0: Counted(0.0, None)}, given={0: None})
    assert count_rows(rows, "accuracy").tied is None


def write(run: Path, rows: list[dict[str, Any]], **changes: Any) -> Evaluation:
    flags = [row["correct"] for row in rows]
    entry = evaluation("sample-boolq", flags, **changes)
    write_jsonl_atomic(run / entry["predictions"], rows)
    return Evaluation.model_validate(entry)


def test_predictions_that_do_not_match_their_record_are_refused(tmp_path: Path) -> None:
    rows = [old(0, "true", ["true", "false"], [-1.0, -1.0]), old(1, "true", ["true", "false"], [-1.0, -2.0])]
    assert read_answers(tmp_path, write(tmp_path, rows)).total == 1.5
    new = [row | {"tied": 2 - row["row"], "credit": (row["row"] + 1) / 2} for row in rows]
    new[0]["correct"] = False
    assert read_answers(tmp_path, write(tmp_path, new, tied=1)).total == 1.5
    with pytest.raises(InputError, match=r"1 tied(.|\n)*0 tied"):
        read_answers(tmp_path, write(tmp_path, new, tied=0))


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"right": "a"}, "right"),
        ({"scores": [None, -1.0]}, "scores.0"),
        ({"prediction": ["x"]}, "prediction"),
        ({"tied": 2}, "tied should not be there without credit"),
        ({"scores_norm": [-1.0]}, "of the same candidates"),
        ({"scores": [], "scores_norm": []}, "scores"),
        ({"scores": [float("nan"), -1.0]}, "scores.0"),
        ({"scores_norm": ["a", "b"]}, "scores_norm"),
        ({"credit": 5.0}, "credit"),
        ({"row": "first"}, "row"),
        ({"correct": 1}, "correct"),
    ],
)
def test_predictions_that_cannot_be_counted_are_one_message(change: dict[str, Any], told: str) -> None:
    whole = old(0, "true", ["true", "false"], [-1.0, -2.0])
    check_rows([whole], "accuracy", where="here")
    with pytest.raises(InputError, match=r"cannot be counted") as caught:
        check_rows([whole, whole | {"row": 1} | change], "accuracy", where="here")
    assert told in caught.value.message and "here, row" in caught.value.message


def test_an_answer_that_no_candidate_has_is_not_right() -> None:
    rows = [
        old(0, "ending1", ENDINGS, [-1.0, -2.0, -3.0, -4.0]),
        old(1, "ending5", ENDINGS, [-1.0, -1.0, -1.0, -4.0]),
    ]
    assert count_rows(rows, "accuracy").credits == {0: 1.0, 1: 0.0}
