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
from doratune.records.study import (
    ArmResult,
    Forgetting,
    MeasuredPair,
    RowMeasure,
    SameRate,
    SeedRun,
    StudyArm,
    StudyCell,
    StudyMethod,
    Trial,
)
from doratune.stats.accuracy import accuracy_with_interval
from doratune.stats.measures import measure_difference, measure_mean, row_values, run_measures
from doratune.stats.seeds import PairedCell, arm_summary, difference
from doratune.stats.telling import with_telling
from doratune.study.given import with_given_answers
from doratune.study.pairs import compared_methods

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
    """Runs that differ only in their seed, and perhaps in the learning rate that it chose.

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
        forgetting: What the runs of this training keep; with its first cell only.
    """

    cell: StudyCell
    pairs: dict[Pair, PairedCell]
    records: dict[str, RunRecord]
    notes: list[str] = field(default_factory=list)
    forgetting: list[Forgetting] = field(default_factory=list)


@dataclass(frozen=True)
class AtOneRate:
    """Two arms with the runs of one learning rate that both tried."""

    rate: float
    first: Arm
    second: Arm


def cell_of(
    facts: Mapping[str, Any],
    entry: Evaluation,
    base: tuple[Run, Evaluation] | None,
    arms: Sequence[Arm],
    at_one_rate: Sequence[AtOneRate] = (),
) -> Answered:
    """The cell of arms that answered the same rows.

    Args:
        facts: The cell's fields that are not in an evaluation.
        entry: Any of the evaluations; they agree in the fields taken from it.
        base: The model before training, with its evaluation, or None.
        arms: The arms to compare.
        at_one_rate: Pairs of them with other runs, to be compared in addition.

    Raises:
        InputError: Predictions cannot be read, or are for different rows.
    """
    answers = {run.place: read_answers(run.directory, one) for arm in arms for run, one in arm.runs}
    before = {base[0].place: read_answers(base[0].directory, base[1])} if base is not None else {}
    correct = tables(arms, {place: found.credits for place, found in answers.items()})
    measured = measured_tables(arms, answers)
    compared: dict[Pair, tuple[PairedCell, list[int | None]]] = {}
    by_name = {arm.name: arm for arm in arms}
    for first, second in compared_pairs(arms):
        seeds, both, runs = paired(by_name[first], by_name[second], correct)
        if seeds:
            # training sets may limit the test rows of one file differently, and others share only a part
            rows = f"{entry.data.sha256} {entry.rows}"
            compared[first, second] = (PairedCell(rows, *both, runs=runs), seeds)
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
        arms=[_arm(arm, correct[arm.name], answers, measured) for arm in arms],
        differences=[
            difference(first, both.from_values, second, both.to_values, seeds)
            for (first, second), (both, seeds) in compared.items()
        ],
        measures=[
            MeasuredPair(
                from_arm=first,
                to_arm=second,
                measure=measure,
                difference=measure_difference(*paired(by_name[first], by_name[second], values)[1]),
            )
            for first, second in compared
            for measure, values in measured.items()
            if first in values and second in values and entry.rows > 1  # one row has no spread
        ],
        same_rate=[found for one in at_one_rate if (found := _same_rate(one, answers)) is not None],
        **facts,
    )
    cell = with_given_answers(cell, {place: found.given for place, found in (answers | before).items()})
    cell = with_telling(cell, correct)
    records = {run.place: run.record for arm in arms for run, _ in arm.runs}
    evaluations = {run.place: one for run, one in [*([base] if base else []), *_runs(arms)]}
    return Answered(
        cell, {pair: both for pair, (both, _) in compared.items()}, records, _type_notes(evaluations)
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
    """The pairs of arms that are compared, by name. If a method has several arms, the first is used."""
    first: dict[StudyMethod, str] = {}
    for arm in arms:
        first.setdefault(arm.method, arm.name)
    return [(first[one], first[other]) for one, other in compared_methods(list(first))]


def _shared_seeds(first: Arm, second: Arm) -> list[int | None]:
    """The seeds that both arms have; [None] for two single runs with different seeds."""
    shared: list[int | None] = [seed for seed in first.seeds if seed in second.seeds]
    return [None] if not shared and len(first.runs) == len(second.runs) == 1 else shared


def paired(
    first: Arm, second: Arm, values: Mapping[str, np.ndarray]
) -> tuple[list[int | None], list[np.ndarray], tuple[tuple[str, str], ...]]:
    """The seeds that both arms have, and each arm's values and runs with them."""
    seeds = _shared_seeds(first, second)
    places = [[arm.seeds.index(seed) for seed in seeds if seed is not None] or [0] for arm in (first, second)]
    both = [values[arm.name][place] for arm, place in zip((first, second), places, strict=True)]
    runs = tuple(
        (first.runs[one][0].place, second.runs[other][0].place) for one, other in zip(*places, strict=True)
    )
    return seeds, both, runs


def _same_rate(one: AtOneRate, known: Mapping[str, Answers]) -> SameRate | None:
    """The difference of two arms at one rate; None without a seed that both have."""
    arms = (one.first, one.second)
    answers = {
        run.place: known[run.place] if run.place in known else read_answers(run.directory, entry)
        for arm in arms
        for run, entry in arm.runs
    }
    credits = {place: found.credits for place, found in {**known, **answers}.items()}
    seeds, both, _ = paired(*arms, tables(arms, credits))
    if not seeds:
        return None
    first, second = both
    return SameRate(
        learning_rate=one.rate,
        from_mean=float(first.mean()),
        to_mean=float(second.mean()),
        difference=difference(one.first.name, first, one.second.name, second, seeds),
    )


def tables(arms: Sequence[Arm], values: Mapping[str, Mapping[int, float]]) -> dict[str, np.ndarray]:
    """Each arm's value per row, (seeds, rows), float, with the rows in the same order for all.

    Args:
        arms: The arms.
        values: By the run's place, the value of each row.

    Raises:
        InputError: A row of one run is missing in another.
    """
    if not values:
        return {}
    first = next(iter(values))
    for place, found in values.items():
        check_same_rows(first, values[first], place, found)
    rows = sorted(values[first])
    return {
        arm.name: np.array([[values[run.place][row] for row in rows] for run, _ in arm.runs], dtype=float)
        for arm in arms
    }


def measured_tables(
    arms: Sequence[Arm], answers: Mapping[str, Answers]
) -> dict[RowMeasure, dict[str, np.ndarray]]:
    """By measure, each arm's value per row as in ``tables``; only of arms whose runs all have scores."""
    scored = {place: found.scored for place, found in answers.items() if found.scored}
    arms = [arm for arm in arms if all(run.place in scored for run, _ in arm.runs)]
    by_run = {run.place: row_values(list(scored[run.place].values())) for arm in arms for run, _ in arm.runs}
    measures = next(iter(by_run.values()), {})
    return {
        measure: tables(
            arms,
            {
                place: dict(zip(scored[place], values[measure].tolist(), strict=True))
                for place, values in by_run.items()
            },
        )
        for measure in measures
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


def _arm(
    arm: Arm,
    correct: np.ndarray,
    answers: Mapping[str, Answers],
    measured: Mapping[RowMeasure, Mapping[str, np.ndarray]],
) -> StudyArm:
    mean, interval = arm_summary(correct)
    record = arm.runs[0][0].record
    rates = {run.record.config.get("learning_rate") for run, _ in arm.runs}
    return StudyArm(
        name=arm.name,
        method=arm.method,
        engine=engine_of(record),
        trials=list(arm.trials),
        learning_rate=rates.pop() if len(rates) == 1 else None,
        runs=[_seed_run(run, entry, answers[run.place]) for run, entry in arm.runs],
        mean=mean,
        interval=interval,
        measures={
            measure: measure_mean(values[arm.name])
            for measure, values in measured.items()
            if arm.name in values
        },
    )


def _seed_run(run: Run, entry: Evaluation, answers: Answers) -> SeedRun:
    record = run.record
    return SeedRun(
        seed=record.seed,
        learning_rate=record.config.get("learning_rate"),
        run=run.place,
        result=_result(entry, answers),
        parameters=record.parameters,
        training=record.training,
        inference_tokens_per_second=record.text.tokens_per_second if record.text else None,
        curve=training_curve(run.directory) if record.training else [],
    )


def engine_of(record: RunRecord) -> Literal["doratune", "peft"] | None:
    """The engine that computed the adapter; None without an adapter, or if the record does not say."""
    chosen = record.config.get("engine")
    if record.method == "full" or chosen not in ("doratune", "peft"):
        return None
    layers = record.training.layers if record.training else None
    if layers is not None:
        return "doratune" if layers.engine else "peft"
    on_engine = record.adapter is None or record.adapter.get("peft_type") == "LORA"
    if record.definition is not None:
        on_engine = bool(record.definition.get("engine"))
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
        measures=run_measures(list(answers.scored.values())) if answers.scored else None,
    )
