"""What runs keep of what they were not trained on: other tasks, and plain text."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from doratune.errors import InputError
from doratune.records.answers import Answers, read_answers
from doratune.records.run import Evaluation, TextLoss
from doratune.records.study import Forgetting, KeptArm, KeptMeasure, KeptPair
from doratune.stats.measures import measure_difference, measure_mean
from doratune.study.cell import Arm, Run, check_same_rows, compared_pairs, measured_tables, paired, tables


def kept_of_task(
    facts: Mapping[str, Any], base: tuple[Run, Evaluation], arms: Sequence[Arm]
) -> list[Forgetting]:
    """What arms keep of a task: its accuracy, and the likelihood of its right answers where all have scores.

    Args:
        facts: The fields that identify the training.
        base: The model before training, with its evaluation on the task.
        arms: The arms, with their evaluations on it.

    Raises:
        InputError: Predictions cannot be read, or are for different rows.
    """
    run, entry = base
    answers = {one.place: read_answers(one.directory, own) for arm in arms for one, own in arm.runs}
    before: dict[str, Answers] = {run.place: read_answers(run.directory, entry)}
    if not answers:
        return []
    place = next(iter(answers))
    check_same_rows(run.place, before[run.place].credits, place, answers[place].credits)
    as_arm = Arm(run.place, arms[0].method, [base])
    whole = {one: found.credits for one, found in answers.items()} | {run.place: before[run.place].credits}
    values: dict[KeptMeasure, dict[str, np.ndarray]] = {
        "accuracy": tables([as_arm, *arms], whole),
        "nll": measured_tables([as_arm, *arms], answers | before).get("nll", {}),
    }
    return [
        _kept({**facts, "about": entry.task, "measure": measure}, found.get(run.place), arms, found)
        for measure, found in values.items()
        if any(arm.name in found for arm in arms)
    ]


def kept_of_text(facts: Mapping[str, Any], base: Run | None, arms: Sequence[Arm]) -> list[Forgetting]:
    """What arms keep of the built-in text; empty if no arm has scored it with all its runs.

    Args:
        facts: The fields that identify the training.
        base: The model before training; None if it is not at hand.
        arms: The arms.

    Raises:
        InputError: Two runs have scored different texts.
    """
    found: dict[str, list[TextLoss]] = {}
    for arm in arms:
        texts = [run.record.text for run, _ in arm.runs]
        if None not in texts:
            found[arm.name] = [one for one in texts if one is not None]
    if not found:
        return []
    before = base.record.text if base is not None else None
    everything = [*([before] if before else []), *(one for texts in found.values() for one in texts)]
    first = everything[0]
    for one in everything:
        if one.sha256 != first.sha256:
            raise InputError(
                "the runs have scored different texts, so they cannot be compared",
                where=", ".join(run.place for arm in arms for run, _ in arm.runs),
                got=f"SHA-256 {first.sha256[:12]} and {one.sha256[:12]}",
                fix="score the text again with doratune eval RUN --text --overwrite",
            )
    facts = {
        **facts,
        "about": first.name,
        "measure": "nll_per_token",
        "bytes_per_token": sum(one.bytes for one in first.pieces) / sum(one.tokens for one in first.pieces),
    }
    values = {name: np.array([_per_token(one) for one in texts]) for name, texts in found.items()}
    return [_kept(facts, np.array([_per_token(before)]) if before else None, arms, values)]


def _per_token(text: TextLoss) -> np.ndarray:
    """A value of each paragraph, (paragraphs,), whose mean is the text's loss per token."""
    tokens = sum(one.tokens for one in text.pieces)
    return np.array([one.nll * len(text.pieces) / tokens for one in text.pieces])


def _kept(
    facts: Mapping[str, Any],
    base: np.ndarray | None,
    arms: Sequence[Arm],
    values: Mapping[str, np.ndarray],
) -> Forgetting:
    """The record of one measure.

    Args:
        facts: The fields that identify it.
        base: The base model's values, (1, rows), or None.
        arms: The arms.
        values: The values of those that have them, (seeds, rows).
    """
    having = {arm.name: arm for arm in arms if arm.name in values}
    rows = next(iter(values.values())).shape[1]
    differences = []
    for first, second in compared_pairs(list(having.values())):
        seeds, both, _ = paired(having[first], having[second], values)
        if seeds and rows > 1:  # one row has no spread
            differences.append(KeptPair(from_arm=first, to_arm=second, difference=measure_difference(*both)))
    return Forgetting(
        **facts,
        rows=rows,
        base=float(base.mean()) if base is not None else None,
        arms=[
            KeptArm(
                name=name,
                seeds=arm.seeds,
                value=measure_mean(values[name]),
                change=measure_difference(np.broadcast_to(base, values[name].shape), values[name])
                if base is not None and rows > 1
                else None,
            )
            for name, arm in having.items()
        ],
        differences=differences,
    )
