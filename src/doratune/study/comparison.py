"""Run directories in, one Comparison out: refuses what cannot be compared and notes what must be known."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from doratune.errors import InputError
from doratune.records.answers import correct_rows, training_curve
from doratune.records.comparison import Arm, ArmResult, Comparison, PairedDifference, TaskResult
from doratune.records.differences import notes_on_differences, shared_settings
from doratune.records.layout import read_record
from doratune.records.run import Evaluation, RunRecord
from doratune.stats.paired import check_same_rows, paired_difference

TaskKey = tuple[str, str, str]
"""A task, its format and its protocol: what must agree for two accuracies to mean the same."""


@dataclass(frozen=True)
class _Run:
    """A run directory that has been read."""

    name: str
    place: str
    directory: Path
    record: RunRecord
    evaluations: dict[TaskKey, Evaluation]


def build_comparison(runs: Sequence[Path], *, title: str, reproduce: str) -> Comparison:
    """Read finished runs and put them side by side.

    Args:
        runs: Run directories, one or more; their order is the order of the arms.
        title: Headline of the report.
        reproduce: The command that gives this comparison.

    Returns:
        The comparison. A task that a run was not evaluated on is missing from that arm's results.

    Raises:
        InputError: A run is missing or damaged, or the runs differ in base model or in evaluated rows.
    """
    loaded = _load(runs)
    _check_same_model(loaded)
    _check_comparable_tasks(loaded)
    records = {run.name: run.record for run in loaded}
    keys = dict.fromkeys(key for run in loaded for key in run.evaluations)
    return Comparison(
        title=title,
        arms=[_arm(run) for run in loaded],
        tasks=[_task(key, loaded) for key in keys],
        settings=shared_settings(records),
        notes=notes_on_differences(records),
        environment=loaded[-1].record.environment,
        reproduce=reproduce,
    )


def _load(directories: Sequence[Path]) -> list[_Run]:
    """The runs, each with a name of its own: the record's, or its place where two records share a name."""
    if not directories:
        raise InputError("there is nothing to compare", expected="one run directory or more")
    resolved = [directory.resolve() for directory in directories]
    repeated = [path for path, count in Counter(resolved).items() if count > 1]
    if repeated:
        raise InputError("a run is given twice", where=str(repeated[0]), fix="name each run directory once")
    records = [read_record(directory) for directory in directories]
    common = Path(os.path.commonpath([path.parent for path in resolved]))
    places = [path.relative_to(common).as_posix() for path in resolved]
    unique = len({record.name for record in records}) == len(records)
    names = [record.name for record in records] if unique else places
    return [
        _Run(name, place, directory, record, _evaluations(directory, record))
        for name, place, directory, record in zip(names, places, directories, records, strict=True)
    ]


def _evaluations(directory: Path, record: RunRecord) -> dict[TaskKey, Evaluation]:
    keyed = {(entry.task, entry.format, entry.protocol): entry for entry in record.evaluations}
    if len(keyed) < len(record.evaluations):
        raise InputError(
            "a run holds two evaluations of one task in the same format and protocol", where=str(directory)
        )
    return keyed


def _check_same_model(runs: list[_Run]) -> None:
    first = runs[0]
    for run in runs[1:]:
        ours, theirs = first.record.model, run.record.model
        if (ours.name, ours.parameters) != (theirs.name, theirs.parameters):
            raise InputError(
                "the runs have different base models, so they cannot be compared",
                where=f"{first.directory}, {run.directory}",
                got=f"{ours.name} ({ours.parameters:,} parameters), {theirs.name} ({theirs.parameters:,})",
                fix="compare runs of one base model",
            )


def _check_comparable_tasks(runs: list[_Run]) -> None:
    """Refuse two runs that have a task in common but never in the same format and protocol."""
    for index, first in enumerate(runs):
        for second in runs[index + 1 :]:
            paired = {task for task, _, _ in first.evaluations.keys() & second.evaluations.keys()}
            for task in sorted(
                {key[0] for key in first.evaluations} & {key[0] for key in second.evaluations}
            ):
                if task not in paired:
                    raise InputError(
                        f"the runs evaluated {task} in different formats or protocols",
                        where=f"{first.directory}, {second.directory}",
                        got=f"{_ways(first, task)}, {_ways(second, task)}",
                        fix="evaluate them again with the same --format and --protocol",
                    )


def _ways(run: _Run, task: str) -> str:
    return " and ".join(f"{form}/{protocol}" for name, form, protocol in run.evaluations if name == task)


def _arm(run: _Run) -> Arm:
    record = run.record
    trained = record.method != "base"
    return Arm(
        name=run.name,
        method=record.method,
        run=run.place,
        parameters=record.parameters if trained else None,
        training=record.training,
        curve=training_curve(run.directory) if record.training else [],
        engine=_engine(record),
    )


def _engine(record: RunRecord) -> Literal["doratune", "peft"] | None:
    """What computed the adapter."""
    chosen = record.config.get("engine")
    return chosen if record.method in ("lora", "dora") and chosen in ("doratune", "peft") else None


def _task(key: TaskKey, runs: list[_Run]) -> TaskResult:
    having = [run for run in runs if key in run.evaluations]
    first = having[0]
    entry = first.evaluations[key]
    correct = {run.name: correct_rows(run.directory, run.evaluations[key]) for run in having}
    for run in having[1:]:
        _check_same_data(key[0], first, entry, run, run.evaluations[key])
        check_same_rows(first.name, correct[first.name], run.name, correct[run.name])
    return TaskResult(
        task=entry.task,
        sample=entry.sample,
        format=entry.format,
        protocol=entry.protocol,
        metric=entry.metric,
        rows=entry.rows,
        chance=entry.chance,
        majority=entry.majority,
        arms={run.name: _result(run.evaluations[key]) for run in having},
        difference=_difference(having, runs, correct),
    )


def _result(entry: Evaluation) -> ArmResult:
    return ArmResult(
        accuracy=entry.accuracy,
        interval=entry.interval,
        correct=entry.correct,
        unmatched=entry.unmatched,
    )


def _difference(
    having: list[_Run], runs: list[_Run], correct: Mapping[str, Mapping[int, bool]]
) -> PairedDifference | None:
    """DoRA against LoRA, of the first run of each: the same pair for every task, or no difference."""
    lora = next((run for run in runs if run.record.method == "lora"), None)
    dora = next((run for run in runs if run.record.method == "dora"), None)
    if lora is None or dora is None or lora not in having or dora not in having:
        return None
    return paired_difference(lora.name, correct[lora.name], dora.name, correct[dora.name])


def _check_same_data(task: str, first: _Run, ours: Evaluation, second: _Run, theirs: Evaluation) -> None:
    facts = {
        "data (SHA-256)": (ours.data.sha256, theirs.data.sha256),
        "limit": (ours.limit, theirs.limit),
        "rows": (ours.rows, theirs.rows),
        "metric": (ours.metric, theirs.metric),
    }
    for fact, (our_value, their_value) in facts.items():
        if our_value != their_value:
            raise InputError(
                f"the runs evaluated different rows of {task}, so they cannot be compared"
                if fact != "metric"
                else f"the runs report different accuracies of {task}, so they cannot be compared",
                where=f"{first.directory}, {second.directory}",
                got=f"{fact} {our_value}, {their_value}",
                fix="evaluate both on the same data with the same --limit",
            )
