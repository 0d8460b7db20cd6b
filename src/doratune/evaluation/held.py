"""What an output folder already holds, and what may not be added to it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from doratune.errors import InputError
from doratune.evaluation.config import EvalConfig
from doratune.evaluation.target import Target
from doratune.records.base_model import compare_base_models
from doratune.records.layout import is_recorded, predictions_name
from doratune.records.run import Format, RunRecord
from doratune.records.storage import read_record


def held_record(output: Path | None) -> RunRecord | None:
    """The record in the output folder; None if there is none."""
    return read_record(output) if output is not None and is_recorded(output) else None


def refuse_repeated(held: RunRecord | None, task: str, fmt: Format, config: EvalConfig) -> None:
    """Refuse an evaluation that the record already has.

    Raises:
        InputError: It has it.
    """
    name = predictions_name(task, fmt, config.protocol)
    if held is not None and any(one.predictions == name for one in held.evaluations):
        raise InputError(
            "this evaluation already exists",
            where=str(config.output or config.target),
            got=f"{task} ({fmt}, {config.protocol})",
            fix="add --overwrite to replace it, or --output to write elsewhere",
        )


def refuse_repeated_text(held: RunRecord | None, config: EvalConfig) -> None:
    """Refuse to score the built-in text again.

    Raises:
        InputError: The record already has its score.
    """
    if config.text and held is not None and held.text is not None:
        raise InputError(
            "the built-in text is already scored",
            where=str(config.output or config.target),
            got="--text",
            fix="leave --text out, add --overwrite to replace it, or --output to write elsewhere",
        )


def refuse_other_target(held: RunRecord, ours: RunRecord, *, where: str) -> None:
    """Refuse to add an evaluation to the record of something else.

    Raises:
        InputError: The record is of another run, adapter or base model.
    """
    one_base = compare_base_models(held.model, ours.model).same
    if ours.training is not None or held.training is not None:
        same = held.started == ours.started  # a copy of the run's record
    else:
        adapter = held.method == "base" or held.config.get("target") == ours.config.get("target")
        same = held.method == ours.method and one_base and adapter
    if not same:
        raise InputError(
            "the output folder holds evaluations of something else",
            where=where,
            got=f"{held.name} ({held.method}) of base {held.model.name}",
            expected=f"{ours.name} ({ours.method}) of base {ours.model.name}",
            fix="give another --output",
        )


def refuse_other_weights(held: RunRecord, target: Target, replaced: Sequence[str], *, text: bool) -> None:
    """Refuse to add an adapter's evaluations to those of weights that were in its folder before.

    Args:
        held: The record.
        target: What is evaluated now.
        replaced: Predictions that are replaced.
        text: Whether the record's text, if it has one, stays.

    Raises:
        InputError: A result that stays is of other weights.
    """
    kept = {one.task: one.scored for one in held.evaluations if one.predictions not in replaced}
    if text and held.text is not None:
        kept["the built-in text"] = held.text.scored
    for what, scored in kept.items():
        known = scored.weights_checksum if scored else None
        if known is not None and known != target.scored.weights_checksum:
            raise InputError(
                "the output folder holds evaluations of other weights",
                where=f"{target.output}, {what}",
                got=known,
                expected=f"{target.scored.weights_checksum}, as they are now",
                fix="give another --output, or evaluate all its tasks again with --overwrite",
            )
