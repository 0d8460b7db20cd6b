"""What the commands left: answers, accuracies, losses."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

from doratune.bench.pipeline.commands import ANSWERS_NAME, REFERENCE_NAME, RUN_NAME
from doratune.bench.pipeline.figures import compare_answers, speed_ratios
from doratune.records.layout import read_jsonl, read_record
from doratune.records.pipeline import Phase, PhaseCost, PipelineRound, Side
from doratune.records.run import RunRecord

STATE_NAME = "trainer_state.json"


def read_round(folder: Path, first: Side, phases: dict[Phase, PhaseCost]) -> tuple[PipelineRound, RunRecord]:
    """One round's entry in the record, and the record of doratune's run.

    Args:
        folder: Where the commands of the round wrote to.
        first: The side that went first.
        phases: What each command took.
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
