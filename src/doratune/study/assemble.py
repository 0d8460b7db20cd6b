"""Makes one StudyRecord of finished groups."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from doratune.environment import describe_environment
from doratune.errors import InputError
from doratune.records.base_model import check_one_base_model
from doratune.records.differences import by_name, environment_notes, shared_settings, type_notes
from doratune.records.run import Environment, Evaluation, RunRecord, unused_settings
from doratune.records.storage import read_divergence, read_record
from doratune.records.study import (
    DivergedRun,
    Forgetting,
    StudyCell,
    StudyMethod,
    StudyRecord,
    Trial,
    arm_name,
)
from doratune.study.cell import Answered, Arm, AtOneRate, Run, cell_of
from doratune.study.families import axes_of, corrected, pooled_differences
from doratune.study.forgetting import kept_of_task, kept_of_text
from doratune.study.grid import Group
from doratune.study.job import Job
from doratune.study.material import Test
from doratune.study.plan import Plan
from doratune.study.schedule import Progress
from doratune.study.tries import validation_majority


def record_of(
    answered: Sequence[Answered],
    *,
    title: str,
    reproduce: str,
    environment: Environment | None = None,
    **more: Any,
) -> StudyRecord:
    """The record of some cells, with corrected p-values and pooled differences over all of them.

    Args:
        answered: The cells.
        title: Headline of the report.
        reproduce: The command that repeats this record.
        environment: The environment of the runs; None: that of the last run.
        **more: The record's other fields, instead of the values for runs without a plan.
    """
    records = {place: record for one in answered for place, record in one.records.items()}
    environments = [record.environment for record in records.values()]
    fields = {
        "question": None,
        "plan": None,
        "inputs": {},
        "pending": [],
        "settings": shared_settings(records) if records else {},
        "notes": [],
        "forgetting": [kept for one in answered for kept in one.forgetting],
        **more,
    }
    return StudyRecord(
        title=title,
        cells=corrected([one.cell for one in answered]),
        pooled=pooled_differences(answered),
        environment=environment or (environments[-1] if environments else describe_environment()),
        environments=max(1, len({one.model_dump_json() for one in environments})),
        reproduce=reproduce,
        **fields,
    )


def answered_cells(progress: Progress) -> list[Answered]:
    """The cells of a finished group, one for each test task.

    Raises:
        InputError: A record or its predictions cannot be read, or the runs have different base models or
            answered different rows.
    """
    first, *others = [_answered(progress, test) for test in progress.group.material.tests]
    return [replace(first, forgetting=_forgetting(progress)), *others]


def _forgetting(progress: Progress) -> list[Forgetting]:
    """What the tested runs of a group keep of the tasks that they were not trained on, and of plain text."""
    group, chosen = progress.group, progress.chosen
    assert chosen is not None
    facts = {
        "model": group.model,
        "trained_on": group.material.entry.name,
        "format": group.format,
        "rank": group.cell_rank,
        "batch_size": group.cell_batch_size,
        "epochs": group.cell_epochs,
        "training_rows": group.rows,
    }

    def arms(test: Test) -> list[Arm]:
        found = [_at(group, method, rates, test) for method, rates in chosen.items()]
        return [arm for arm in found if arm.runs]

    base = group.base()
    run = Run(base.folder, _relative(group, base), read_record(base.folder))
    found = [
        kept
        for test in group.material.also
        for kept in kept_of_task(facts, (run, _entry(base, test)), arms(test))
    ]
    return [*found, *kept_of_text(facts, run, arms(group.material.tests[0]))]


def study_record(
    plan: Plan,
    groups: Sequence[Group],
    inputs: dict[str, str],
    answered: Sequence[Answered],
    *,
    reproduce: str,
    left_out: Sequence[str] = (),
) -> StudyRecord:
    """The whole record of a study, finished or not.

    Args:
        plan: The plan.
        groups: All its groups.
        inputs: The hashes that identify its models and rows.
        answered: The cells of the finished groups.
        reproduce: The command that repeats this study.
        left_out: Tasks of the plan that were not asked for.
    """
    finished = {_place(one.cell) for one in answered}
    wanted = {
        (group.material.train_record.asked, group.model, test.task.name, group.format, *group.axes): (
            _title(plan, group, test)
        )
        for group in groups
        for test in group.material.tests
    }
    records = {place: record for one in answered for place, record in one.records.items()}
    shared = shared_settings(records) if records else {}
    return record_of(
        answered,
        title=plan.title,
        reproduce=reproduce,
        question=plan.question,
        plan=plan.model_dump(mode="json"),
        inputs=inputs,
        pending=[title for place, title in wanted.items() if place not in finished],
        settings={key: value for key, value in shared.items() if key not in ("data", "training_data")},
        differing=_own_settings(plan, records),
        left_out=list(left_out),
        notes=[
            *([f"A part of the plan: {', '.join(left_out)} left out with --only."] if left_out else []),
            *dict.fromkeys(note for one in answered for note in one.notes),
            *_notes(plan, records),
        ],
    )


def _answered(progress: Progress, test: Test) -> Answered:
    group, chosen = progress.group, progress.chosen
    assert chosen is not None
    arms = [_arm(progress, method, rates, test) for method, rates in chosen.items()]
    arms = [arm for arm in arms if arm.runs]
    at_one_rate = [
        AtOneRate(rate, *(_at(group, method, dict.fromkeys(group.seeds, rate), test) for method in pair))
        for pair, rate in progress.shared.items()
    ]
    base = group.base()
    base_run = Run(base.folder, _relative(group, base), read_record(base.folder))
    models = {
        run.place: run.record.model
        for arm in (*arms, *(arm for one in at_one_rate for arm in (one.first, one.second)))
        for run, _ in arm.runs
    }
    models[base_run.place] = base_run.record.model
    notes = check_one_base_model(models, fix="give another --output, or the model that the finished runs had")
    base_entry = _entry(base, test)
    material = group.material
    facts = {
        "model": group.model,
        "rank": group.cell_rank,
        "batch_size": group.cell_batch_size,
        "epochs": group.cell_epochs,
        "training_rows": group.rows,
        "train": material.train_record,
        "validation": material.validation_record,
        "test": test.record,
        "note": material.entry.note,
        "diverged": _diverged(progress),
        **_search(progress),
    }
    at_one_rate = [one for one in at_one_rate if one.first.runs and one.second.runs]
    answered = cell_of(facts, base_entry, (base_run, base_entry), arms, at_one_rate)
    return replace(answered, notes=[*notes, *answered.notes])


def _search(progress: Progress) -> dict[str, Any]:
    """The cell's fields on how the learning rates were chosen."""
    if not progress.tries:
        return {}
    group, added = progress.group, progress.added
    return {
        "chosen_per": group.plan.choose.per,
        "extended": (added.below, added.above),
        "validation_majority": validation_majority(progress.trials),
    }


def _arm(progress: Progress, method: StudyMethod, rates: Mapping[int, float], test: Test) -> Arm:
    """An arm with its search and the runs of its chosen rates."""
    group = progress.group
    trials = [
        Trial(
            learning_rate=one.rate,
            seed=seed,
            accuracy=None if one.diverged else one.accuracy,
            nll=one.nll,
            rows=one.rows,
            run=_relative(group, group.trial(method, one.rate, seed)),
            chosen=one.rate == rates.get(seed),
        )
        for seed, tried in progress.tries.get(method, {}).items()
        for one in tried
    ]
    trials.sort(key=lambda one: (one.learning_rate, one.seed))
    return replace(_at(group, method, rates, test), trials=trials)


def _at(group: Group, method: StudyMethod, rates: Mapping[int, float], test: Test) -> Arm:
    """A method's runs with one rate for each seed, without those that diverged."""
    jobs = [group.test(method, rates[seed], seed) for seed in sorted(rates)]
    runs = [
        (Run(job.folder, _relative(group, job), read_record(job.folder)), _entry(job, test))
        for job in jobs
        if not job.diverged()
    ]
    return Arm(method, method, runs)


def _diverged(progress: Progress) -> list[DivergedRun]:
    """The runs of a group that ended without a result; the trial of a chosen rate is also its test."""
    found: dict[str, DivergedRun] = {}
    for job in (*progress.trials, *progress.jobs):
        place = _relative(progress.group, job)
        if place in found or job.method == "base" or job.config is None or not job.diverged():
            continue
        divergence = read_divergence(job.folder)
        found[place] = DivergedRun(
            arm=job.method,
            method=job.method,
            learning_rate=job.config.learning_rate,
            seed=job.config.seed,
            run=place,
            trial=job.stage == "trial",
            seconds=divergence.seconds,
            message=divergence.message,
        )
    return list(found.values())


def _entry(job: Job, test: Test) -> Evaluation:
    """A run's evaluation on the test rows of a task."""
    for wanted in job.wanted:
        if wanted.config.split == "test" and wanted.task == test.task.name:
            found = wanted.found()
            if found is not None:
                return found
    raise InputError("a run of the study is not evaluated", where=str(job.folder), expected=test.task.name)


def _relative(group: Group, job: Job) -> str:
    return job.folder.relative_to(group.folder).as_posix()


def _place(cell: StudyCell) -> tuple[Any, ...]:
    trained_on = cell.train.asked if cell.train else ""
    return trained_on, cell.model, cell.task, cell.format, *axes_of(cell)


def _title(plan: Plan, group: Group, test: Test) -> str:
    """A cell's name, with what distinguishes it from the plan's other cells."""
    entry = group.material.entry
    parts = [f"{test.task.name} ({group.format})"]
    if test.task.name != entry.name:
        parts.append(f"trained on {' and '.join(entry.names)}")
    if len(plan.models) > 1:
        parts.append(Path(group.model).name)
    if len(plan.ranks) > 1:
        parts.append(f"rank {group.rank}")
    if len(plan.batch_sizes) > 1:
        parts.append(f"batch size {group.batch_size}")
    if len(plan.epochs) > 1:
        parts.append(f"{group.epochs:g} epochs")
    if len(entry.row_limits) > 1:
        parts.append(f"{group.rows:,} training rows")
    return ", ".join(parts)


def _notes(plan: Plan, records: Mapping[str, RunRecord]) -> list[str]:
    """Notes for the reader on all runs of a plan together."""
    if not records:
        return []
    by_method = {record.method: record for record in records.values()}
    notes = type_notes(by_method)
    for key, values in _own_settings(plan, records).items():
        notes.append(f"The methods differ in {key}: {by_name(values)}.")
    if len(plan.ranks) > 1:
        same = [arm_name(method) for method in plan.methods if "rank" in plan.method(method).unused]
        notes += [f"{name} has no rank: its results at all ranks are of the same runs." for name in same]
    return notes + environment_notes(records)


def _own_settings(plan: Plan, records: Mapping[str, RunRecord]) -> dict[str, dict[str, Any]]:
    """By setting that a method has for itself and others differ in, its value for every trained method.

    Methods that do not use the setting are left out, and of the rank those that find their own.
    """
    by_method = {record.method: record for record in records.values() if record.method != "base"}
    found = {
        key: {
            method: record.config.get(key)
            for method, record in by_method.items()
            if key not in unused_settings(record) and not (key == "rank" and plan.method(method).match)
        }
        for key in dict.fromkeys(
            key
            for own in plan.own_settings.values()
            for name in own
            for key in (name, *(["alpha"] if name == "rank" else []))  # it follows the rank
        )
    }
    return {
        key: values
        for key, values in found.items()
        if any(value != next(iter(values.values())) for value in values.values())
    }
