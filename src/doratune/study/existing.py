"""Makes one StudyRecord of existing run directories; refuses what cannot be compared and adds notes."""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from doratune.errors import InputError
from doratune.records.base_model import check_one_base_model, check_own_base_model
from doratune.records.differences import (
    arm_key,
    differing_settings,
    notes_on_differences,
    shared_settings,
)
from doratune.records.run import DataRecord, Evaluation, deciding, mixed, way_of_asking
from doratune.records.storage import read_record
from doratune.records.study import Forgetting, StudyMethod, StudyRecord, arm_name, method_of
from doratune.records.weights import check_own_weights
from doratune.study.assemble import record_of
from doratune.study.cell import Answered, Arm, Run, cell_of
from doratune.study.forgetting import kept_of_text

TaskKey = tuple[str, str, str]
"""A task, its format and its protocol, which must agree for two accuracies to be comparable."""


@dataclass(frozen=True)
class _Evaluated:
    """A run with its evaluations."""

    run: Run
    evaluations: dict[TaskKey, Evaluation]


def record_of_runs(runs: Sequence[Path], *, title: str | None, reproduce: str) -> StudyRecord:
    """Read finished runs and put them side by side.

    Runs that differ only in their seed form one arm.

    Args:
        runs: One or more run directories; their order is the order of the arms.
        title: Headline of the report; None: the names of the arms.
        reproduce: The command that repeats this record.

    Returns:
        The record, with a cell for each task. A run appears only in the cells of tasks that it was evaluated
        on.

    Raises:
        InputError: A run is missing, damaged or not evaluated, or the runs differ in base model or in
            evaluated rows.
    """
    loaded = _load(runs)
    models = {str(one.run.directory): one.run.record.model for one in loaded}
    unseen = check_one_base_model(models, fix="compare runs of one base model")
    _check_comparable_tasks(loaded)
    base = [one for one in loaded if one.run.record.method == "base"]
    arms = _arms([one for one in loaded if one.run.record.method != "base"])
    keys = dict.fromkeys(key for one in loaded for key in one.evaluations)
    records = {name: of_arm[0].run.record for name, of_arm in arms.items()}
    records |= {one.run.record.name: one.run.record for one in base}
    everything = {one.run.place: one.run.record for one in loaded}
    # The records are each arm's first run, whose seed says nothing where an arm has several.
    told = {"seed"} if any(len(arm) > 1 for arm in arms.values()) else set[str]()
    rank = _rank([one for arm in arms.values() for one in arm])
    answered = [_cell(key, base, arms, rank) for key in keys]
    notes = [*unseen, *(note for one in answered for note in one.notes)]
    return record_of(
        answered,
        forgetting=_forgetting(base, arms),
        title=title or _title(list(arms)),
        reproduce=reproduce,
        environment=loaded[-1].run.record.environment,
        settings=shared_settings(everything),
        differing={key: one for key, one in differing_settings(records).items() if key not in told},
        notes=[*notes, *notes_on_differences(records, told=told), *_seed_notes(arms), *_arm_notes(arms)],
    )


def _title(arms: Sequence[str]) -> str:
    """A headline for arms in their order."""
    *others, last = map(arm_name, arms) if arms else ["the base model"]
    return f"{', '.join(others)} and {last} compared" if others else f"Evaluation of {last}"


def _load(directories: Sequence[Path]) -> list[_Evaluated]:
    if not directories:
        raise InputError("there is nothing to compare", expected="one or more run directories")
    records = [read_record(directory) for directory in directories]
    resolved = [directory.resolve() for directory in directories]
    repeated = [path for path, count in Counter(resolved).items() if count > 1]
    if repeated:
        raise InputError("a run is given twice", where=str(repeated[0]), fix="name each run directory once")
    common = Path(os.path.commonpath([path.parent for path in resolved]))
    runs = [
        Run(directory, path.relative_to(common).as_posix(), record)
        for directory, path, record in zip(directories, resolved, records, strict=True)
    ]
    return [_Evaluated(run, _evaluations(run)) for run in runs]


def _evaluations(run: Run) -> dict[TaskKey, Evaluation]:
    found = run.record.evaluations
    if not found:
        scored = run.record.text is not None
        raise InputError(
            "the run has scored only the built-in text, which is not compared without a task"
            if scored
            else "the run was not evaluated, so there is nothing to compare",
            where=str(run.directory),
            fix=f"doratune eval {run.directory} --task TASK",
        )
    check_own_base_model(run.record, where=str(run.directory))
    check_own_weights(run.record, where=str(run.directory))
    keyed = {(entry.task, entry.format, entry.protocol): entry for entry in found}
    if len(keyed) < len(found):
        raise InputError(
            "a run holds two evaluations of one task in the same format and protocol",
            where=str(run.directory),
        )
    return keyed


def _check_comparable_tasks(runs: Sequence[_Evaluated]) -> None:
    """Raise if two runs share a task but not in the same format and protocol."""
    for index, first in enumerate(runs):
        for second in runs[index + 1 :]:
            paired = {task for task, _, _ in first.evaluations.keys() & second.evaluations.keys()}
            shared = {key[0] for key in first.evaluations} & {key[0] for key in second.evaluations}
            for task in sorted(shared - paired):
                raise InputError(
                    f"the runs evaluated {task} in different formats or protocols",
                    where=f"{first.run.directory}, {second.run.directory}",
                    got=f"{_ways(first, task)}, {_ways(second, task)}",
                    fix="evaluate them again with the same --format and --protocol",
                )


def _ways(one: _Evaluated, task: str) -> str:
    return " and ".join(f"{form}/{protocol}" for name, form, protocol in one.evaluations if name == task)


def _arms(runs: Sequence[_Evaluated]) -> dict[str, list[_Evaluated]]:
    """The runs by the name of their arm, with ascending seeds."""
    groups: dict[str, list[_Evaluated]] = {}
    for one in runs:
        groups.setdefault(arm_key(one.run.record), []).append(one)
    arms: list[list[_Evaluated]] = []
    for group in groups.values():
        seeds = {one.run.record.seed for one in group}
        arms += [group] if len(seeds) == len(group) else [[one] for one in group]
    order = {id(one): place for place, one in enumerate(runs)}
    arms.sort(key=lambda arm: min(order[id(one)] for one in arm))
    sorted_arms = [sorted(arm, key=lambda one: one.run.record.seed) for arm in arms]
    return dict(zip(_names(sorted_arms), sorted_arms, strict=True))


def _names(arms: Sequence[Sequence[_Evaluated]]) -> list[str]:
    """The method if it has one arm, otherwise the name of the first run, or its place if names repeat."""
    runs = [arm[0].run for arm in arms]
    methods = [method_of(run.record) for run in runs]
    places = [run.place for run in runs]
    for own in ([run.record.name for run in runs], places):
        names = [
            method if methods.count(method) == 1 else name for method, name in zip(methods, own, strict=True)
        ]
        if len(set(names)) == len(names):
            return names
    return places


def _cell(
    key: TaskKey, base: Sequence[_Evaluated], arms: dict[str, list[_Evaluated]], rank: int | None
) -> Answered:
    """The cell of a task; its rank is that of all runs, as all cells of a pair of arms belong together."""
    having = {name: [one for one in arm if key in one.evaluations] for name, arm in arms.items()}
    trained = [one for arm in having.values() for one in arm]
    before = [one for one in base if key in one.evaluations]
    if len(before) > 1:
        raise InputError(
            f"the base model was evaluated on {key[0]} in two runs",
            where=", ".join(str(one.run.directory) for one in before),
            fix="name one of them",
        )
    first, *others = [*before, *trained]
    entry = first.evaluations[key]
    for other in others:
        _check_same_data(key[0], first, entry, other, other.evaluations[key])
    facts: dict[str, Any] = {
        "model": first.run.record.model.name,
        "rank": rank,
        "train": _train(trained),
        "validation": None,
        "test": entry.data,
        "note": None,
    }
    return cell_of(
        facts,
        entry,
        (before[0].run, before[0].evaluations[key]) if before else None,
        [
            Arm(name, method_of(arm[0].run.record), [(one.run, one.evaluations[key]) for one in arm])
            for name, arm in having.items()
            if arm
        ],
    )


def _forgetting(base: Sequence[_Evaluated], arms: dict[str, list[_Evaluated]]) -> list[Forgetting]:
    """What the runs keep of plain text; the tasks that they were evaluated on are cells."""
    trained = [one for arm in arms.values() for one in arm]
    if not trained:
        return []
    rows, formats = _train(trained), {one.run.record.config.get("format") for one in trained}
    facts = {
        "model": trained[0].run.record.model.name,
        "trained_on": (rows.task or rows.source) if rows else "different rows",
        "format": formats.pop() if len(formats) == 1 else None,
        "rank": _rank(trained),
    }
    with_text = [one.run for one in base if one.run.record.text is not None]
    return kept_of_text(
        facts,
        with_text[0] if with_text else None,
        [
            Arm(
                name,
                method_of(arm[0].run.record),
                [(one.run, next(iter(one.evaluations.values()))) for one in arm],
            )
            for name, arm in arms.items()
        ],
    )


def _rank(trained: Sequence[_Evaluated]) -> int | None:
    """The rank of all adapters; None if they differ."""
    records = [one.run.record for one in trained]
    ranks = {record.config.get("rank") for record in records if record.method != "full"}
    return ranks.pop() if len(ranks) == 1 else None


def _train(trained: Sequence[_Evaluated]) -> DataRecord | None:
    """The rows that all runs were trained on; None if they differ."""
    rows = {tuple(part.asked for part in one.run.record.data): one.run.record.data for one in trained}
    data = next(iter(rows.values())) if len(rows) == 1 else []
    return mixed(data) if data else None


def _seed_notes(arms: dict[str, list[_Evaluated]]) -> list[str]:
    """A note if arms have different seeds, so that not all runs enter a difference."""
    seeds = {name: [one.run.record.seed for one in arm] for name, arm in arms.items()}
    if len({tuple(one) for one in seeds.values()}) == 1 or all(len(one) == 1 for one in seeds.values()):
        return []
    listed = "; ".join(f"{arm_name(name)} {', '.join(map(str, own))}" for name, own in seeds.items())
    return [f"The arms have different seeds ({listed}); a difference is over the seeds that both arms have."]


def _arm_notes(arms: dict[str, list[_Evaluated]]) -> list[str]:
    """Notes on methods with several arms: whose files differ, and that only the first is compared."""
    methods: dict[StudyMethod, list[str]] = {}
    for name, arm in arms.items():
        methods.setdefault(method_of(arm[0].run.record), []).append(name)
    several = [names for names in methods.values() if len(names) > 1]
    told = [
        f"The file of the method {method} was not the same for {' and '.join(names)}."
        for method, names in methods.items()
        if len({json.dumps(deciding(arms[name][0].run.record), sort_keys=True) for name in names}) > 1
    ]
    if len(methods) < 2:
        return told
    return told + [
        f"Of {', '.join(names)}, which are of one method, only {names[0]} is in the differences."
        for names in several
    ]


def _check_same_data(
    task: str, first: _Evaluated, ours: Evaluation, second: _Evaluated, theirs: Evaluation
) -> None:
    if way_of_asking(ours.data.definition) != way_of_asking(theirs.data.definition):
        raise InputError(
            f"the runs were evaluated on different tasks of the name {task}, so they cannot be compared",
            where=f"{first.run.directory}, {second.run.directory}",
            got="task files with another layout or row",
            fix="give one of the tasks another name",
        )
    facts = {
        "data (SHA-256)": (ours.data.sha256, theirs.data.sha256),
        "eval_rows": (ours.limit, theirs.limit),
        "rows": (ours.rows, theirs.rows),
        "metric": (ours.metric, theirs.metric),
    }
    for fact, (our_value, their_value) in facts.items():
        if our_value != their_value:
            raise InputError(
                f"the runs evaluated different rows of {task}, so they cannot be compared"
                if fact != "metric"
                else f"the runs report different accuracies of {task}, so they cannot be compared",
                where=f"{first.run.directory}, {second.run.directory}",
                got=f"{fact} {our_value}, {their_value}",
                fix="evaluate both on the same data with the same --eval-rows",
            )
