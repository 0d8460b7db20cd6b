"""Finished groups in, one StudyRecord out. The only place where a study asks for statistics."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from doratune.environment import describe_environment
from doratune.errors import InputError
from doratune.records.answers import correct_rows, training_curve
from doratune.records.differences import environment_notes, shared_settings
from doratune.records.layout import read_record
from doratune.records.run import Evaluation, RunRecord
from doratune.records.study import (
    ArmResult,
    PooledDifference,
    SeedRun,
    StudyArm,
    StudyCell,
    StudyDifference,
    StudyMethod,
    StudyRecord,
    Trial,
)
from doratune.stats.paired import check_same_rows
from doratune.stats.seeds import PairedCell, adjusted, arm_summary, difference, pooled
from doratune.study.grid import Group
from doratune.study.job import Job
from doratune.study.material import Test
from doratune.study.plan import Plan
from doratune.study.schedule import Progress, tried_rates

RunKey = tuple[StudyMethod, int]
"""A method and a seed: one run of a cell."""


@dataclass(frozen=True)
class Answered:
    """A cell, with which of its rows each run had right.

    Attributes:
        cell: Its p-values are not corrected yet.
        correct: By method, (seeds, rows), bool.
        records: Of all its trained runs, by run directory.
    """

    cell: StudyCell
    correct: dict[StudyMethod, np.ndarray]
    records: dict[str, RunRecord]


def answered_cells(progress: Progress) -> list[Answered]:
    """The cells of a finished group, one for each task that it was tested on.

    Raises:
        InputError: A record or its predictions cannot be read, or the runs are not of the same base model or
            did not answer the same rows.
    """
    return [_answered(progress, test) for test in progress.group.material.tests]


def study_record(
    plan: Plan, groups: Sequence[Group], answered: Sequence[Answered], *, reproduce: str
) -> StudyRecord:
    """The whole record of a study, finished or not.

    Args:
        plan: The plan.
        groups: All its groups.
        answered: The cells of those that are finished.
        reproduce: The command that gives this study.
    """
    cells = _corrected([one.cell for one in answered])
    records = {name: record for one in answered for name, record in one.records.items()}
    environments = [record.environment for record in records.values()]
    finished = {_place(one.cell) for one in answered}
    wanted = {
        (group.material.train.record.sha256, group.model, test.task.name, group.format, group.rank): _title(
            plan, group, test
        )
        for group in groups
        for test in group.material.tests
    }
    return StudyRecord(
        title=plan.title,
        question=plan.question,
        plan=plan.model_dump(mode="json"),
        inputs={},
        cells=cells,
        pooled=_pooled(answered),
        pending=[title for place, title in wanted.items() if place not in finished],
        settings=_settings(records),
        notes=_notes(records),
        environment=environments[-1] if environments else describe_environment(),
        environments=max(1, len({one.model_dump_json() for one in environments})),
        reproduce=reproduce,
    )


def compared_pairs(methods: Sequence[StudyMethod]) -> list[tuple[StudyMethod, StudyMethod]]:
    """Which methods are compared, as (from, to): each with LoRA, DoRA first; without LoRA with the first."""
    reference: StudyMethod = "lora" if "lora" in methods else methods[0]
    others: list[StudyMethod] = [method for method in methods if method != reference]
    others.sort(key=lambda one: one != "dora")
    return [(reference, other) for other in others]


def _answered(progress: Progress, test: Test) -> Answered:
    group, chosen = progress.group, progress.chosen
    assert chosen is not None
    runs: dict[RunKey, Job] = {
        (method, seed): group.test(method, rate, seed)
        for method, rate in chosen.items()
        for seed in sorted(group.plan.seeds)
    }
    records = {job.folder.name: read_record(job.folder) for job in runs.values()}
    _check_same_base(records)
    entries = {key: _entry(job, test) for key, job in runs.items()}
    base = next(job for job in group.base() if job.wanted[0].config.task == [test.task.name])
    base_entry = _entry(base, test)
    correct = _table(group, runs, entries)
    arms = [
        _arm(group, method, chosen[method], runs, entries, correct[method]) for method in group.plan.methods
    ]
    cell = StudyCell(
        model=group.model,
        task=test.task.name,
        sample=test.task.sample,
        format=group.format,
        protocol=base_entry.protocol,
        metric=base_entry.metric,
        rank=group.rank,
        rows=base_entry.rows,
        chance=base_entry.chance,
        majority=base_entry.majority,
        train=group.material.train.record,
        validation=group.material.validation_record,
        test=test.record,
        note=group.material.entry.note,
        base=_result(base_entry),
        arms=arms,
        differences=[
            difference(one, correct[one], other, correct[other], sorted(group.plan.seeds))
            for one, other in compared_pairs(group.plan.methods)
        ],
    )
    return Answered(cell, correct, records)


def _entry(job: Job, test: Test) -> Evaluation:
    """A run's evaluation on the test rows of a task."""
    for wanted in job.wanted:
        if wanted.config.split == "test" and wanted.config.task == [test.task.name]:
            found = wanted.found()
            if found is not None:
                return found
    raise InputError("a run of the study is not evaluated", where=str(job.folder), expected=test.task.name)


def _table(
    group: Group,
    runs: dict[RunKey, Job],
    entries: dict[RunKey, Evaluation],
) -> dict[StudyMethod, np.ndarray]:
    """(seeds, rows) of each method, the rows in the same order for all."""
    answers = {key: correct_rows(job.folder, entries[key]) for key, job in runs.items()}
    first = next(iter(answers))
    for key, found in answers.items():
        check_same_rows(runs[first].folder.name, answers[first], runs[key].folder.name, found)
    rows = sorted(answers[first])
    return {
        method: np.array(
            [[answers[method, seed][row] for row in rows] for seed in sorted(group.plan.seeds)], dtype=bool
        )
        for method in group.plan.methods
    }


def _arm(
    group: Group,
    method: StudyMethod,
    rate: float,
    runs: dict[RunKey, Job],
    entries: dict[RunKey, Evaluation],
    correct: np.ndarray,
) -> StudyArm:
    mean, interval = arm_summary(correct)
    seeds = sorted(group.plan.seeds)
    return StudyArm(
        name=method,
        method=method,
        engine=_engine(runs[method, seeds[0]]),
        trials=[
            Trial(
                learning_rate=one.rate,
                accuracy=one.accuracy,
                rows=one.rows,
                run=_relative(group, group.trial(method, one.rate)),
                chosen=one.rate == rate,
            )
            for one in tried_rates(group, method)
        ],
        learning_rate=rate,
        runs=[_seed_run(group, seed, runs[method, seed], entries[method, seed]) for seed in seeds],
        mean=mean,
        interval=interval,
    )


def _seed_run(group: Group, seed: int, job: Job, entry: Evaluation) -> SeedRun:
    record = read_record(job.folder)
    if record.training is None:
        raise InputError("a run of the study was not trained", where=str(job.folder))
    return SeedRun(
        seed=seed,
        run=_relative(group, job),
        result=_result(entry),
        parameters=record.parameters,
        training=record.training,
        curve=training_curve(job.folder),
    )


def _engine(job: Job) -> Literal["doratune", "peft"] | None:
    """What computed the adapter."""
    return job.config.engine if job.config is not None and job.config.method != "full" else None


def _result(entry: Evaluation) -> ArmResult:
    return ArmResult(
        accuracy=entry.accuracy, interval=entry.interval, correct=entry.correct, unmatched=entry.unmatched
    )


def _check_same_base(records: dict[str, RunRecord]) -> None:
    prints = {record.model.fingerprint: name for name, record in records.items()}
    if len(prints) > 1:
        raise InputError(
            "the runs have different base models, so they cannot be compared",
            where=", ".join(prints.values()),
            fix="give another --output, or the model that the finished runs had",
        )


def _relative(group: Group, job: Job) -> str:
    return job.folder.relative_to(group.folder).as_posix()


def _corrected(cells: list[StudyCell]) -> list[StudyCell]:
    """The cells with p corrected over the tasks: a family is one pair of methods at one model and rank."""
    found: dict[tuple[int, int], StudyDifference] = {}
    families: dict[tuple[Any, ...], list[tuple[int, int]]] = {}
    for index, cell in enumerate(cells):
        for number, one in enumerate(cell.differences):
            key = (cell.model, cell.rank, one.from_arm, one.to_arm)
            families.setdefault(key, []).append((index, number))
    for places in families.values():
        family = adjusted([cells[index].differences[number] for index, number in places])
        found.update(zip(places, family, strict=True))
    return [
        cell.model_copy(
            update={"differences": [found[index, number] for number in range(len(cell.differences))]}
        )
        for index, cell in enumerate(cells)
    ]


def _pooled(answered: Sequence[Answered]) -> list[PooledDifference]:
    """Over the cells of a model and rank, where there are several."""
    families: dict[tuple[str, int], list[Answered]] = {}
    for one in answered:
        families.setdefault((one.cell.model, one.cell.rank), []).append(one)
    return [
        PooledDifference(
            model=model,
            rank=rank,
            cells=[f"{one.cell.task} ({one.cell.format})" for one in family],
            difference=pooled(
                first,
                second,
                [PairedCell(one.cell.test.sha256, one.correct[first], one.correct[second]) for one in family],
            ),
        )
        for (model, rank), family in families.items()
        if len(family) > 1
        for first, second in compared_pairs([arm.method for arm in family[0].cell.arms])
    ]


def _settings(records: dict[str, RunRecord]) -> dict[str, Any]:
    """What all runs share, without the places of files."""
    if not records:
        return {}
    shared = shared_settings(records)
    return {key: value for key, value in shared.items() if key not in ("data", "training_data")}


def _notes(records: dict[str, RunRecord]) -> list[str]:
    """What a reader must know of all runs together."""
    if not records:
        return []
    notes = environment_notes(records)
    dtypes = {(record.method, record.model.dtype): None for record in records.values()}
    if len({dtype for _, dtype in dtypes}) > 1:
        listed = ", ".join(f"{method} {dtype}" for method, dtype in dtypes)
        notes.insert(0, f"The base model was not loaded in the same type: {listed}.")
    return notes


def _place(cell: StudyCell) -> tuple[str, str, str, str, int]:
    return cell.train.sha256, cell.model, cell.task, cell.format, cell.rank


def _title(plan: Plan, group: Group, test: Test) -> str:
    """A cell's name, with what tells it from others of the plan."""
    parts = [f"{test.task.name} ({group.format})"]
    if test.task.name != group.material.entry.train.lower():
        parts.append(f"trained on {group.material.entry.train}")
    if len(plan.models) > 1:
        parts.append(Path(group.model).name)
    if len(plan.ranks) > 1:
        parts.append(f"rank {group.rank}")
    return ", ".join(parts)
