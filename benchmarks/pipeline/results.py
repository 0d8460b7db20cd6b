"""Reads the files that the commands left, and derives ratios, agreement and verdicts."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import median
from typing import Any, Literal

from doratune.records.files import read_jsonl
from doratune.records.run import RunRecord
from doratune.records.storage import read_record
from pipeline.commands import ANSWERS_NAME, REFERENCE_NAME, RUN_NAME
from pipeline.record import Agreement, Figure, Phase, PhaseCost, PipelineRound, PipelineVerdict, Side

STATE_NAME = "trainer_state.json"
TARGETS: dict[Figure, float] = {"generate": 3.0, "likelihood": 6.0, "same_answers": 0.99}
"""The lowest figure that meets each target."""


def read_round(folder: Path, first: Side, phases: dict[Phase, PhaseCost]) -> tuple[PipelineRound, RunRecord]:
    """One round's entry in the record, and the record of doratune's run.

    Args:
        folder: Where the round's commands wrote their files.
        first: The side that went first.
        phases: The cost of each command.
    """
    run = read_record(folder / RUN_NAME)
    assert run.training is not None
    state = json.loads((folder / REFERENCE_NAME / STATE_NAME).read_text(encoding="utf-8"))
    evaluations = {one.protocol: one for one in run.evaluations}
    ours = read_jsonl(folder / RUN_NAME / evaluations["generate"].predictions)
    theirs = read_jsonl(folder / ANSWERS_NAME)
    entry = PipelineRound(
        first=first,
        phases=phases,
        steps={"doratune": run.training.steps, "reference": state["global_step"]},
        final_loss={"doratune": run.training.final_loss, "reference": _last_loss(state)},
        accuracy={
            "doratune-generate": evaluations["generate"].accuracy,
            "doratune-likelihood": evaluations["likelihood"].accuracy,
            "reference-generate": sum(one["prediction"] == one["answer"] for one in theirs) / len(theirs),
        },
        same_answers=compare_answers(_answers(ours), _answers(theirs)),
        ratios=speed_ratios(phases),
    )
    return entry, run


def _answers(predictions: list[dict[str, Any]]) -> dict[int, str | None]:
    return {one["row"]: one["prediction"] for one in predictions}


def _last_loss(state: dict[str, Any]) -> float:
    """The last loss that transformers' Trainer logged."""
    return next((entry["loss"] for entry in reversed(state["log_history"]) if "loss" in entry), math.nan)


def speed_ratios(phases: Mapping[Phase, PhaseCost]) -> dict[Literal["generate", "likelihood"], float]:
    """The reference's time to train and evaluate, divided by doratune's, by protocol."""
    seconds = {phase: cost.seconds for phase, cost in phases.items()}
    reference = seconds["reference-train"] + seconds["reference-generate"]
    return {
        "generate": reference / (seconds["doratune-train"] + seconds["doratune-generate"]),
        "likelihood": reference / (seconds["doratune-train"] + seconds["doratune-likelihood"]),
    }


def compare_answers(ours: Mapping[int, str | None], theirs: Mapping[int, str | None]) -> Agreement:
    """Count the rows in which both sides gave the same answer.

    Args:
        ours: Answers by row; None if a text had none.
        theirs: The other side's answers to the same rows.

    Raises:
        ValueError: The rows are not the same.
    """
    if ours.keys() != theirs.keys():
        raise ValueError(f"rows that only one side has: {sorted(ours.keys() ^ theirs.keys())}")
    differing = sorted(row for row in ours if ours[row] != theirs[row])
    return Agreement(rows=len(ours), same=len(ours) - len(differing), differing=differing)


def judge(rounds: Sequence[PipelineRound]) -> list[PipelineVerdict]:
    """Compare each target with the measured figure."""
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
