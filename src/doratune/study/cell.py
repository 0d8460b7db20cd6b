"""Makes one cell of a record, with its statistics, of runs that answered the same rows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np

from doratune.errors import InputError
from doratune.records.answers import Answers, read_answers
from doratune.records.run import Evaluation, RunRecord
from doratune.records.storage import training_curve
from doratune.records.study import ArmResult, SeedRun, StudyArm, StudyCell, StudyMethod, Trial
from doratune.stats.accuracy import accuracy_with_interval
from doratune.stats.seeds import PairedCell, arm_summary, difference
from doratune.stats.telling import with_telling
from doratune.study.given import with_given_answers

Pair = tuple[str, str]
"""The arms that are compared, by name: the difference is the second minus the first."""


@dataclass(frozen=True)
class Run:
    """A run directory that has been read.

    Attributes:
        directory: Its path.
        place: Its path in the record, relative to the folder that all runs share.
        record: Its record.json.
    """

    directory: Path
    place: str
    record: RunRecord


@dataclass(frozen=True)
class Arm:
    """Runs that differ only in their seed.

    Attributes:
        name: Unique in the cell.
        method: The method they were trained with.
        runs: By ascending seed, each with its evaluation on the cell's rows.
        trials: The trials in which their learning rate was chosen.
    """

    name: str
    method: StudyMethod
    runs: Sequence[tuple[Run, Evaluation]]
    trials: Sequence[Trial] = ()

    @property
    def seeds(self) -> list[int]:
        """The seeds, ascending."""
        return [run.record.seed for run, _ in self.runs]


@dataclass(frozen=True)
class Answered:
    """A cell, with the answers behind its differences.

    Attributes:
        cell: The cell, whose p-values are not corrected yet.
        pairs: The answers of each compared pair of arms.
        records: The records of all its trained runs, by place.
        notes: What could not be compared of their base models, and what differs between their evaluations.
    """

    cell: StudyCell
    pairs: dict[Pair, PairedCell]
    records: dict[str, RunRecord]
    notes: list[str] = field(default_factory=list)


def cell_of(
    facts: Mapping[str, Any], entry: Evaluation, base: tuple[Run, Evaluation] | None, arms: Sequence[Arm]
) -> Answered:
    """The cell of arms that answered the same rows.

    Args:
        facts: The cell's fields that are not in an evaluation.
        entry: Any of the evaluations; they agree in the fields taken from it.
        base: The model before training, with its evaluation, or None.
        arms: The arms to compare.

    Raises:
        InputError: Predictions cannot be read, or are for different rows.
    """
    answers = {run.place: read_answers(run.directory, one) for arm in arms for run, one in arm.runs}
    before = {base[0].place: read_answers(base[0].directory, base[1])} if base is not None else {}
    correct = _tables(arms, answers)
    compared: dict[Pair, tuple[PairedCell, list[int | None]]] = {}
    by_name = {arm.name: arm for arm in arms}
    for first, second in compared_pairs(arms):
        seeds = _shared_seeds(by_name[first], by_name[second])
        if seeds:
            places = [
                [by_name[name].seeds.index(seed) for seed in seeds if seed is not None] or [0]
                for name in (first, second)
            ]
            tables = [correct[name][own] for name, own in zip((first, second), places, strict=True)]
            runs = [
                [by_name[name].runs[place][0].place for place in own]
                for name, own in zip((first, second), places, strict=True)
            ]
            paired = PairedCell(entry.data.sha256, *tables, runs=tuple(zip(*runs, strict=True)))
            compared[first, second] = (paired, seeds)
    cell = StudyCell(
        task=entry.task,
        sample=entry.sample,
        format=entry.format,
        protocol=entry.protocol,
        metric=entry.metric,
        rows=entry.rows,
        chance=entry.chance,
        majority=entry.majority,
        base=_result(base[1], before[base[0].place]) if base is not None else None,
        arms=[_arm(arm, correct[arm.name], answers) for arm in arms],
        differences=[
            difference(first, paired.from_values, second, paired.to_values, seeds)
            for (first, second), (paired, seeds) in compared.items()
        ],
        **facts,
    )
    cell = with_given_answers(cell, {place: found.given for place, found in (answers | before).items()})
    cell = with_telling(cell, correct)
    records = {run.place: run.record for arm in arms for run, _ in arm.runs}
    evaluations = {run.place: one for run, one in [*([base] if base else []), *_runs(arms)]}
    return Answered(
        cell, {pair: paired for pair, (paired, _) in compared.items()}, records, _type_notes(evaluations)
    )


def _runs(arms: Sequence[Arm]) -> list[tuple[Run, Evaluation]]:
    return [one for arm in arms for one in arm.runs]


def _type_notes(evaluations: Mapping[str, Evaluation]) -> list[str]:
    """A note if the evaluations of a cell differ in dtype, since rounding changes answers."""
    by_type: dict[str, list[str]] = {}
    for place, one in evaluations.items():
        by_type.setdefault(one.scored.dtype if one.scored else "a type that is not recorded", []).append(
            place
        )
    if len(by_type) < 2:
        return []
    told = "; ".join(f"{', '.join(places)} in {dtype}" for dtype, places in by_type.items())
    task = next(iter(evaluations.values())).task
    return [f"The answers to {task} were not all computed in the same type: {told}."]


def compared_pairs(arms: Sequence[Arm]) -> list[Pair]:
    """The pairs of arms that are compared, by name: every method with LoRA, DoRA first.

    Without LoRA, methods are compared with the first one. If a method has several arms, the first is used.
    """
    first: dict[StudyMethod, str] = {}
    for arm in arms:
        first.setdefault(arm.method, arm.name)
    if not first:
        return []
    reference: StudyMethod = "lora" if "lora" in first else next(iter(first))
    others = [name for method, name in first.items() if method not in (reference, "dora")]
    dora = [first["dora"]] if "dora" in first and reference != "dora" else []
    return [(first[reference], other) for other in [*dora, *others]]


def _shared_seeds(first: Arm, second: Arm) -> list[int | None]:
    """The seeds that both arms have; [None] for two single runs with different seeds."""
    shared: list[int | None] = [seed for seed in first.seeds if seed in second.seeds]
    return [None] if not shared and len(first.runs) == len(second.runs) == 1 else shared


def _tables(arms: Sequence[Arm], answers: Mapping[str, Answers]) -> dict[str, np.ndarray]:
    """Each arm's credit per row, (seeds, rows), float, with the rows in the same order for all."""
    if not answers:
        return {}
    credits = {place: found.credits for place, found in answers.items()}
    first = next(iter(credits))
    for place, found in credits.items():
        check_same_rows(first, credits[first], place, found)
    rows = sorted(credits[first])
    return {
        arm.name: np.array([[credits[run.place][row] for row in rows] for run, _ in arm.runs], dtype=float)
        for arm in arms
    }


def check_same_rows(
    first: str, first_correct: Mapping[int, float], second: str, second_correct: Mapping[int, float]
) -> None:
    """Raise if two arms have predictions for different rows.

    Raises:
        InputError: A row of one arm is missing in the other.
    """
    unpaired = first_correct.keys() ^ second_correct.keys()
    if unpaired:
        raise InputError(
            "the arms did not answer the same rows, so they cannot be compared",
            where=f"{first}, {second}",
            got=f"{len(unpaired)} rows that only one of them answered, such as row {min(unpaired)}",
            fix="evaluate both on the same data with the same --eval-rows",
        )


def _arm(arm: Arm, correct: np.ndarray, answers: Mapping[str, Answers]) -> StudyArm:
    mean, interval = arm_summary(correct)
    record = arm.runs[0][0].record
    return StudyArm(
        name=arm.name,
        method=arm.method,
        engine=engine_of(record),
        trials=list(arm.trials),
        learning_rate=record.config.get("learning_rate"),
        runs=[_seed_run(run, entry, answers[run.place]) for run, entry in arm.runs],
        mean=mean,
        interval=interval,
    )


def _seed_run(run: Run, entry: Evaluation, answers: Answers) -> SeedRun:
    record = run.record
    return SeedRun(
        seed=record.seed,
        run=run.place,
        result=_result(entry, answers),
        parameters=record.parameters,
        training=record.training,
        curve=training_curve(run.directory) if record.training else [],
    )


def engine_of(record: RunRecord) -> Literal["doratune", "peft"] | None:
    """The engine that computed the adapter; None without an adapter, or if the record does not say."""
    chosen = record.config.get("engine")
    if record.method == "full" or chosen not in ("doratune", "peft"):
        return None
    on_engine = record.adapter is None or record.adapter.get("peft_type") == "LORA"
    return chosen if on_engine else "peft"


def _result(entry: Evaluation, answers: Answers) -> ArmResult:
    """Computed from the answers, since older versions counted ties differently in the evaluation."""
    accuracy = accuracy_with_interval(answers.total, len(answers.rows))
    return ArmResult(
        accuracy=accuracy.value,
        interval=(accuracy.low, accuracy.high),
        correct=answers.right,
        tied=answers.tied,
        unmatched=entry.unmatched,
    )
