"""From phases to ratios, agreement and verdicts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import median
from typing import Literal

from doratune.records.pipeline import Agreement, Figure, Phase, PhaseCost, PipelineRound, PipelineVerdict

TARGETS: dict[Figure, float] = {"generate": 3.0, "likelihood": 6.0, "same_answers": 0.99}
"""The lowest figures that are good enough."""


def speed_ratios(phases: Mapping[Phase, PhaseCost]) -> dict[Literal["generate", "likelihood"], float]:
    """How many times as long the reference takes to train and evaluate as doratune does, by protocol."""
    seconds = {phase: cost.seconds for phase, cost in phases.items()}
    reference = seconds["reference-train"] + seconds["reference-generate"]
    return {
        "generate": reference / (seconds["doratune-train"] + seconds["doratune-generate"]),
        "likelihood": reference / (seconds["doratune-train"] + seconds["doratune-likelihood"]),
    }


def compare_answers(ours: Mapping[int, str | None], theirs: Mapping[int, str | None]) -> Agreement:
    """In how many rows both sides gave the same answer.

    Args:
        ours: Answer by row, None where a text held none.
        theirs: The same of the other side, for the same rows.

    Raises:
        ValueError: The rows are not the same.
    """
    if ours.keys() != theirs.keys():
        raise ValueError(f"other rows: {sorted(ours.keys() ^ theirs.keys())}")
    differing = sorted(row for row in ours if ours[row] != theirs[row])
    return Agreement(rows=len(ours), same=len(ours) - len(differing), differing=differing)


def judge(rounds: Sequence[PipelineRound]) -> list[PipelineVerdict]:
    """Each target beside what was measured."""
    measured: dict[Figure, float] = {
        "generate": median(one.ratios["generate"] for one in rounds),
        "likelihood": median(one.ratios["likelihood"] for one in rounds),
        "same_answers": min(one.same_answers.same / one.same_answers.rows for one in rounds),
    }
    return [
        PipelineVerdict(
            figure=figure, at_least=at_least, measured=measured[figure], met=measured[figure] >= at_least
        )
        for figure, at_least in TARGETS.items()
    ]
