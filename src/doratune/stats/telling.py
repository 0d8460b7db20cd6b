"""Whether the arms of a cell learned anything, without which their difference says nothing about methods.

An arm's runs have learned if their mean accuracy is above the floor, the better of a guess and of always
giving the most frequent answer, by more than 1.64 standard errors over the rows. For an arm that only guesses
that happens in 5 % of cells. The seeds' spread is left out, because the question is what these runs learned,
not what other seeds would. An arm does not count if most of its runs give one answer to nearly every row.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

import numpy as np
from scipy import stats

from doratune.records.study import StudyArm, StudyCell, arm_name
from doratune.stats.seeds import without_verdict
from doratune.wording import listed

ONE_ANSWER = 0.95
"""From this share of rows with the same answer on, a run hardly tells rows apart."""
_ERRORS = float(stats.norm.isf(0.05))


def beats(correct: np.ndarray, floor: float) -> bool:
    """Whether the mean accuracy of some runs is above ``floor`` by more than chance.

    Args:
        correct: (seeds, rows), bool, or float from 0 to 1.
        floor: A share.
    """
    by_row = correct.astype(float).mean(axis=0)
    error = by_row.std(ddof=1) / np.sqrt(by_row.size) if by_row.size > 1 else np.inf
    return bool(by_row.mean() - floor > _ERRORS * error)


def with_telling(cell: StudyCell, correct: Mapping[str, np.ndarray]) -> StudyCell:
    """The cell with no verdict on arms of which neither learned, and with the reason if no arm did.

    Args:
        cell: The cell; the most frequent answer of each run is known.
        correct: By arm, what each row counts, (seeds, rows).
    """
    reasons = {arm.name: reason for arm in cell.arms if (reason := _reason(cell, arm, correct[arm.name]))}
    differences = [
        without_verdict(one, _told(cell, {arm: reasons[arm] for arm in (one.from_arm, one.to_arm)}))
        if {one.from_arm, one.to_arm} <= reasons.keys()
        else one
        for one in cell.differences
    ]
    nothing = _told(cell, reasons) if cell.arms and len(reasons) == len(cell.arms) else None
    return cell.model_copy(update={"differences": differences, "tells_nothing": nothing})


def _reason(
    cell: StudyCell, arm: StudyArm, correct: np.ndarray
) -> Literal["low accuracy", "one answer"] | None:
    """Why an arm is not shown to have learned anything; None if it is."""
    if not beats(correct, cell.floor):
        return "low accuracy"
    same = [run.most_given is not None and run.most_given.share >= ONE_ANSWER for run in arm.runs]
    return "one answer" if cell.majority < ONE_ANSWER and 2 * sum(same) > len(same) else None


def _told(cell: StudyCell, reasons: Mapping[str, str]) -> str:
    """The reasons of several arms as one clause."""
    floor = "always giving the most frequent answer" if cell.majority >= cell.chance else "a guess"
    low = [arm_name(arm) for arm, reason in reasons.items() if reason == "low accuracy"]
    same = [arm_name(arm) for arm, reason in reasons.items() if reason == "one answer"]
    parts = []
    if low:
        who = {1: f"{low[0]} is not", 2: f"neither {' nor '.join(low)} is"}.get(
            len(low), f"none of {listed(low)} is"
        )
        parts.append(f"{who} shown to beat {floor} ({100 * cell.floor:.1f} %)")
    if same:
        verb = "gives" if len(same) == 1 else "give"
        parts.append(f"{listed(same)} {verb} one answer to {100 * ONE_ANSWER:.0f} % of the rows or more")
    return " and ".join(parts)
