"""Plans and resumes a comparison, which is a study of one model, training set, format and rank."""

from __future__ import annotations

import logging
import shutil
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import Field

from doratune.data.mix import without_mix
from doratune.data.source import refuse_without_file
from doratune.data.tasks import get_task, plain_name
from doratune.errors import InputError
from doratune.methods.find import get_method, title_of
from doratune.records.archive import PREDICTIONS_FILE, RUNS_FILE, has_archive
from doratune.records.folders import refuse_output, refuse_run_directory
from doratune.records.layout import COMPARISON_NAME, RUNS_NAME, STUDY_NAME
from doratune.records.run import Protocol
from doratune.records.storage import read_study
from doratune.records.study import StudyMethod, StudyRecord
from doratune.settings import LaxPath, Positive, Seed, validate
from doratune.study.address import ADDRESS_DIGITS, WITHOUT_EFFECT
from doratune.study.plan import CROSSED, Plan, Rate
from doratune.study.plan_checks import check_plan
from doratune.study.plan_file import recorded_plan
from doratune.training.config import TrainingSettings
from doratune.wording import listed

if TYPE_CHECKING:
    from doratune.study.study import Study

logger = logging.getLogger(__name__)

COMPARED: tuple[StudyMethod, ...] = ("lora", "dora")
"""The methods that a comparison trains without ``--methods``."""
HELD_EQUAL = CROSSED - {"rank", "alpha", "learning_rate"}
"""Settings that the methods of a comparison must share."""


class CompareConfig(TrainingSettings):
    """Base and methods on the same rows, order, seeds and budget."""

    methods: Annotated[list[str], Field(min_length=1)] = Field(default=[*COMPARED])
    """Names of methods (doratune methods lists them), or YAML files of your own."""
    output: LaxPath
    """Folder for the runs, the table and the report."""
    test_data: LaxPath | None = None
    """JSON or JSONL file with the test rows, for a comparison on --data."""
    protocol: Protocol = "likelihood"
    """likelihood: rank the candidate answers; generate: beam search and answer pattern."""
    eval_rows: Positive | None = None
    """Only the first so many test rows of each task."""
    eval_batch_size: Positive = 32
    """Rows per forward pass in evaluation."""

    seeds: list[Seed] | None = None
    """Runs with each of these seeds, instead of --seed."""
    learning_rates: list[Rate] | None = None
    """Peak learning rates, instead of --learning-rate. Of several, every seed chooses on held-out rows."""
    validation_rows: Positive = 500
    """Training rows held out to choose among several learning rates; with one rate none are."""


def comparison_plan(config: CompareConfig, own: Mapping[StudyMethod, CompareConfig]) -> Plan:
    """The plan of a comparison.

    Args:
        config: What the methods share.
        own: The whole configuration of each method with settings that differ from those.

    Raises:
        InputError: There is no task, or settings do not fit together.
    """
    if not config.task:
        raise InputError(
            "a comparison needs a task",
            where="--task",
            expected="one task or more; --data and --test-data are files with its rows",
        )
    for name in without_mix(config.task):
        if config.data is None:
            refuse_without_file(get_task(name), "train")
        if config.test_data is None:
            refuse_without_file(get_task(name), "test", flag="--test-data")
    rates = config.learning_rates or [config.learning_rate]
    methods = [get_method(one, where="--methods").name for one in config.methods]
    titles = [title_of(one) for one in methods]
    named = listed(titles)
    values = {
        "title": f"{named[:1].upper()}{named[1:]} on {', '.join(map(plain_name, config.task))}",
        "question": f"Which is the most accurate on the same rows, order and budget: {named}?",
        "models": [config.model],
        "methods": config.methods,
        "tasks": [
            {
                "train": config.task if len(config.task) > 1 else config.task[0],
                "formats": [config.format],
                "rows": config.rows,
                "validation_rows": config.validation_rows if len(rates) > 1 else None,
                "eval_rows": config.eval_rows,
                "train_data": config.data,
                "test_data": config.test_data,
            }
        ],
        "ranks": [config.rank],
        "learning_rates": rates,
        "own_learning_rates": {
            method: [one.learning_rate]
            for method, one in own.items()
            if not config.learning_rates and one.learning_rate != config.learning_rate
        },
        "seeds": config.seeds or [config.seed],
        "protocol": config.protocol,
        "alpha_over_rank": config.alpha / config.rank,
        "settings": _settings(config),
        "own_settings": {
            method: found for method, one in own.items() if (found := _own_settings(config, method, one))
        },
        "eval_batch_size": config.eval_batch_size,
    }
    plan = validate(Plan, values, where="compare")
    check_plan(plan, "compare")
    return plan


def check_output(output: Path, *, resume: bool, overwrite: bool) -> None:
    """Raise if the output folder holds a comparison that is neither resumed nor replaced.

    Raises:
        InputError: It holds one, both resume and overwrite are given, it is a run directory, or the
            comparison to resume is not there or of an older version.
    """
    if resume and overwrite:
        raise InputError(
            "a comparison can be resumed or replaced, not both",
            where="--resume, --overwrite",
            fix="give one of the two",
        )
    refuse_output(output)
    refuse_run_directory(output)
    names = (STUDY_NAME, RUNS_NAME, COMPARISON_NAME)
    held = [str(output / name) for name in names if (output / name).exists()]
    if held and not (resume or overwrite):
        raise InputError(
            "the output folder already holds a comparison",
            where="--output",
            got=", ".join(held),
            fix="choose another folder, or add --resume to continue it or --overwrite to start again",
        )
    if resume and not held and not has_archive(output):
        raise InputError(
            "there is no comparison to resume",
            where="--output",
            got=output,
            expected="the folder of a comparison",
            fix="correct the path, or leave --resume out to start a comparison there",
        )
    if resume and held == [str(output / COMPARISON_NAME)]:
        raise InputError(
            "a comparison made by an older version of doratune cannot be resumed",
            where=held[0],
            fix="choose another --output; doratune report RUN... shows the runs in the folder",
        )


def remove_comparison(output: Path) -> None:
    """Delete the runs and the record of a comparison; other files are left alone.

    Its runs are recognised by the address in their names, since the folder may hold other runs and rows.
    Files with its rows are rewritten where they differ.
    """
    for run in (output / RUNS_NAME).glob(f"*-{'[0-9a-f]' * ADDRESS_DIGITS}"):
        shutil.rmtree(run, ignore_errors=True)
    with suppress(OSError):  # it is not there, or not empty
        (output / RUNS_NAME).rmdir()
    for file in (STUDY_NAME, COMPARISON_NAME, RUNS_FILE, PREDICTIONS_FILE):
        (output / file).unlink(missing_ok=True)


def read_earlier(output: Path) -> StudyRecord | None:
    """The record of the comparison in a folder, finished or not; None if there is none.

    Raises:
        InputError: It cannot be read.
    """
    path = output / STUDY_NAME
    return read_study(path) if path.is_file() else None


def check_same(study: Study, earlier: StudyRecord) -> None:
    """Raise if a comparison would be resumed as a different one; seeds, rates and tasks may be added.

    Args:
        study: The comparison requested now.
        earlier: The record in its folder.

    Raises:
        InputError: Anything else differs; the message names all differences.
    """
    where = str(study.folder / STUDY_NAME)
    if earlier.plan is None:
        raise InputError(
            "the folder holds a report, not a comparison", where=where, fix="choose another --output"
        )
    before = _with_alpha(recorded_plan(earlier.plan, where=f"{where}, plan"))
    changed = [*_changed_inputs(study, before, earlier.inputs), *_changed_settings(study.plan, before)]
    if changed:
        raise InputError(
            "a resumed comparison may only add seeds, learning rates and tasks",
            where=where,
            got="; ".join(changed),
            fix="resume without these changes, choose another --output, or --overwrite",
        )
    if before.choose != study.plan.choose and before.tasks[0].validation_rows is not None:
        logger.warning(
            "%s: an older version chose one learning rate for all seeds; now every seed tries all rates and "
            "chooses its own, so there is more to train and results may change",
            where,
        )


def _settings(config: CompareConfig) -> dict[str, Any]:
    """The runs' shared settings for which the plan has no key, without those at their default."""
    own = set(TrainingSettings.model_fields) - CROSSED
    return config.model_dump(mode="json", include=own, exclude_defaults=True)


def _own_settings(config: CompareConfig, method: StudyMethod, one: CompareConfig) -> dict[str, Any]:
    """The settings of a method that differ from the shared ones."""
    names = set(CompareConfig.model_fields)
    differing = {name for name in names if getattr(one, name) != getattr(config, name)}
    unequal = sorted(differing - (set(TrainingSettings.model_fields) - HELD_EQUAL))
    if unequal:
        raise InputError(
            "the methods of a comparison share this setting",
            where=f"preset, methods.{method}",
            got=", ".join(unequal),
            fix="give it outside of methods",
        )
    if "rank" in differing:
        differing.add("alpha")  # as given: a plan's would follow the rank
    return one.model_dump(mode="json", include=differing - {"learning_rate"})


def _with_alpha(plan: Plan) -> Plan:
    """A comparison's plan as it is written now: a method's own rank stands with its alpha."""
    shared = plan.alpha(plan.ranks[0])
    own = {
        method: {"alpha": shared, **settings} if "rank" in settings else settings
        for method, settings in plan.own_settings.items()
    }
    return plan.model_copy(update={"own_settings": own})


def _changed_inputs(study: Study, before: Plan, inputs: Mapping[str, str]) -> list[str]:
    """The model and rows whose content has changed, whatever they are called."""
    shown = {"model": (f"{before.models[0]}, ", f"{study.plan.models[0]}, ")}
    changed = []
    for what, old in inputs.items():
        new = study.inputs.get(what, old)
        if new != old:
            first, second = shown.get(what, ("", ""))
            said = f"the content of the file of {what}" if what.startswith("method ") else what
            changed.append(f"{said}: {first}{_digest(old)} -> {second}{_digest(new)}")
    return changed


def _digest(identity: str) -> str:
    return identity.rpartition(":")[2][:12]


def _changed_settings(now: Plan, before: Plan) -> list[str]:
    """All other changes, as "name: old value -> new value"."""
    old, new = _fixed(before), _fixed(now)
    # With one rate no rows are held out. Going to or from one rate shows as a change of rates below.
    if None in (before.tasks[0].validation_rows, now.tasks[0].validation_rows):
        del old["validation_rows"]
    # The list of methods already shows that one was removed.
    changed = [
        f"{name}: {old[name]} -> {new[name]}" for name in old if name in new and old[name] != new[name]
    ]
    growing = _growing(now)
    for name, values in _growing(before).items():
        if name in growing and any(one not in growing[name] for one in values):
            changed.append(f"{name}: {_listed(values)} -> {_listed(growing[name])}")
    return changed


def _fixed(plan: Plan) -> dict[str, Any]:
    """The values that must stay the same, by name."""
    task, rank = plan.tasks[0], plan.ranks[0]
    settings = TrainingSettings.model_validate(plan.settings)
    return {
        "training sets": len(plan.tasks),
        "methods": _listed(plan.methods),
        "format": _listed(task.formats),
        "rows": task.rows,
        "validation_rows": task.validation_rows,
        "eval_rows": task.eval_rows,
        "rank": _listed(plan.ranks),
        "alpha": plan.alpha(rank),
        "protocol": plan.protocol,
        "eval_batch_size": plan.eval_batch_size,
        **{
            name: getattr(settings, name)
            for name in TrainingSettings.model_fields
            if name not in CROSSED | WITHOUT_EFFECT
        },
        **{f"settings of {method}": plan.own_settings.get(method, {}) for method in plan.methods},
    }


def _growing(plan: Plan) -> dict[str, Sequence[Any]]:
    """The values that may be added to, by name."""
    rates = {f"learning_rate of {method}": plan.rates(method) for method in plan.methods}
    return {"task": plan.tasks[0].trained_on, "seed": plan.seeds, **rates}


def _listed(values: Sequence[Any]) -> str:
    return ", ".join(f"{one:g}" if isinstance(one, float) else str(one) for one in values)
