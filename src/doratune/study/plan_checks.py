"""Whether the parts of a plan fit together, before anything is loaded or trained."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from doratune.data.mix import refuse_twice, without_mix
from doratune.data.tasks import get_tasks, plain_name
from doratune.errors import InputError
from doratune.methods.find import get_method
from doratune.settings import validate
from doratune.study.plan import CROSSED, Plan
from doratune.study.rates import Added, extended_rates
from doratune.training.config import TrainingSettings


def check_plan(plan: Plan, source: str) -> None:
    """Raise if the parts of a plan do not fit together.

    Args:
        plan: The plan.
        source: Its origin, for messages.

    Raises:
        InputError: Tasks, methods or learning rates do not fit together.
    """
    for method in plan.methods:
        if method not in plan.own_methods:
            get_method(method, where=f"{source}, methods")
    _check_tasks(plan, source)
    _check_own(plan, source)
    _check_tries(plan, source)
    _check_resources(plan, source)


def _check_resources(plan: Plan, source: str) -> None:
    """Refuse several processes without a GPU for each, or with a model that one process divides."""
    processes, gpus = plan.resources.of_a_run, plan.resources.gpus
    if processes == 1:
        return
    if gpus not in (0, processes):
        raise InputError(
            "each process of a run has one GPU, or none has",
            where=f"{source}, resources",
            got=f"{processes} processes and {gpus:g} GPUs",
            expected="as many GPUs as processes",
        )
    everywhere = (plan.settings, *plan.own_settings.values())
    if any(settings.get("device_map") for settings in everywhere):
        raise InputError(
            "a run's model is divided among devices, or its batches among processes, not both",
            where=f"{source}, resources, settings",
            got=f"a device_map and {processes} processes a run",
            fix="leave device_map out, or set processes: 1 under resources",
        )


def check_choice(values: dict[str, Any], source: str) -> None:
    """Refuse a choice of learning rates on test rows.

    Raises:
        InputError: The plan asks for one.
    """
    choose = values.get("choose")
    if isinstance(choose, dict) and choose.get("on") == "test":
        raise InputError(
            "a learning rate chosen on the test rows would make their accuracy worthless",
            where=source,
            got="choose: {on: test}",
            expected="choose: {on: validation}",
        )


def check_settings(plan: Plan, source: str) -> None:
    """Refuse settings that cannot be used, or that the plan has its own keys for.

    Raises:
        InputError: There is one.
    """
    taken = sorted({*CROSSED, "validation_share"} & plan.settings.keys())
    if taken:
        raise InputError(
            "the plan has its own keys for these settings",
            where=f"{source}, settings",
            got=", ".join(taken),
            fix="use models, tasks, ranks, alpha_over_rank, learning_rates, seeds or a task's own keys",
        )
    _check_crossed(plan, source)
    validate(TrainingSettings, plan.settings, where=f"{source}, settings")
    for method, own in plan.own_settings.items():
        taken = sorted({*CROSSED - {"rank", "alpha"}, "validation_share"} & own.keys())
        if taken:
            raise InputError(
                "the methods of a plan share this setting",
                where=f"{source}, own_settings, {method}",
                got=", ".join(taken),
                fix="leave it out; own_learning_rates gives single methods other rates",
            )
        validate(TrainingSettings, own, where=f"{source}, own_settings, {method}")


def _check_crossed(plan: Plan, source: str) -> None:
    """Refuse a setting that is both crossed and given."""
    hidden = {"batch_sizes": {"batch_size"}, "epochs": {"epochs", "steps"}}
    for key, names in hidden.items():
        for where, settings in (("settings", plan.settings), *plan.own_settings.items()):
            given = sorted(names & settings.keys())
            if getattr(plan, key) and given:
                raise InputError(
                    f"{key} and this setting exclude each other",
                    where=f"{source}, {where if where == 'settings' else f'own_settings, {where}'}",
                    got=", ".join(given),
                    fix=f"leave it out, or leave out {key}",
                )


def _check_tasks(plan: Plan, source: str) -> None:
    _check_names(plan, source)
    for task in plan.tasks:
        for key, names in (("train", task.trained_on), ("test", task.test), ("also_test", task.also_test)):
            refuse_twice(names, where=f"{source}, tasks, {task.name}, {key}")
    refuse_twice(plan.also_test, where=f"{source}, also_test")
    repeated = sorted(_repeated([task.name for task in plan.tasks]))
    if repeated:
        raise InputError(
            "a training set is listed twice",
            where=f"{source}, tasks",
            got=", ".join(repeated),
            fix="give it one entry; it may have several formats and test tasks",
        )
    _check_also(plan, source)
    for task in plan.tasks:
        if task.train_data is not None and len(task.trained_on) > 1:
            raise InputError(
                "one data file can only be for one task",
                where=f"{source}, tasks, train_data",
                got=", ".join(task.trained_on),
                expected="one task",
            )
        if task.test_data is not None and len(task.tests) > 1:
            raise InputError(
                "one file holds the test rows of one task",
                where=f"{source}, tasks, {task.name}",
                got=", ".join(task.tests),
            )
        if plan.protocol == "generate" and "continuation" in task.formats:
            raise InputError(
                "generated text can only be matched against answer labels",
                where=f"{source}, tasks, {task.name}",
                got="protocol generate with the format continuation",
                expected="the format instruct",
            )


def _check_also(plan: Plan, source: str) -> None:
    """Refuse to call forgotten what is trained on, or tested anyway."""
    for task in plan.tasks:
        ours = without_mix([*task.trained_on, *task.tests])
        known = {plain_name(one).lower() for one in ours}
        shared = [one for one in without_mix(task.also_test) if plain_name(one).lower() in known]
        if shared:
            raise InputError(
                "also_test is for tasks that are neither trained on nor tested otherwise",
                where=f"{source}, tasks, {task.name}, also_test",
                got=", ".join(shared),
                fix="leave it out",
            )
    used = {plain_name(one).lower() for task in plan.tasks for one in plan.also_tested(task)}
    unused = [one for one in without_mix(plan.also_test) if plain_name(one).lower() not in used]
    if unused:
        raise InputError(
            "every training set of the plan trains on this task or tests it",
            where=f"{source}, also_test",
            got=", ".join(unused),
            fix="leave it out",
        )


def _check_names(plan: Plan, source: str) -> None:
    """Refuse tasks that are not known, and two files that define a task of one name."""
    try:
        named = [name for task in plan.tasks for name in (*task.trained_on, *task.test, *task.also_test)]
        get_tasks(without_mix([*named, *plan.also_test]))
    except InputError as error:
        where = f"{source}, tasks" if error.where == "--task" else error.where
        raise InputError(
            error.what, where=where, got=error.got, expected=error.expected, fix=error.fix
        ) from None


def _check_own(plan: Plan, source: str) -> None:
    for key, own in (("own_learning_rates", plan.own_learning_rates), ("own_settings", plan.own_settings)):
        for method in own:
            if method not in plan.methods:
                raise InputError(
                    f"{key} names a method that is not in the plan", where=f"{source}, {key}", got=method
                )
    for method, own in plan.own_settings.items():
        if ignored := sorted(plan.method(method).unused & own.keys()):
            raise InputError(
                "the method has no use for this setting",
                where=f"{source}, own_settings, {method}",
                got=", ".join(ignored),
                fix="leave it out",
            )
    if len(plan.ranks) > 1:
        if all("rank" in plan.method(method).unused for method in plan.methods):
            raise InputError(
                "no method of the plan has a rank, so several ranks would repeat the same runs",
                where=f"{source}, ranks",
                got=", ".join(map(str, plan.ranks)),
                expected="one rank",
            )
        for method, own in plan.own_settings.items():
            if {"rank", "alpha"} & own.keys():
                raise InputError(
                    "a method cannot have its own rank if the plan crosses several ranks",
                    where=f"{source}, own_settings, {method}",
                    got=f"ranks {', '.join(map(str, plan.ranks))}",
                )


def _check_tries(plan: Plan, source: str) -> None:
    tries = {method: len(plan.rates(method)) for method in plan.methods}
    if len(set(tries.values())) > 1:
        raise InputError(
            "the methods have different numbers of learning rates",
            where=f"{source}, learning_rates, own_learning_rates",
            got=", ".join(f"{method} {count}" for method, count in tries.items()),
            fix="give every method as many learning rates",
        )
    if plan.choose.extend and max(tries.values()) == 1:
        raise InputError(
            "a single learning rate has no factor by which to add others",
            where=f"{source}, choose",
            got=f"extend: {plan.choose.extend}",
            expected="two learning rates or more",
            fix="add a learning rate, or leave extend out",
        )
    added = Added(plan.extension, plan.extension)
    for method in plan.methods if plan.extension else []:
        extended = extended_rates(plan.rates(method), added)
        if not 0 < extended[0] <= extended[-1] < math.inf:
            raise InputError(
                "a learning rate that may be added at an end of the list would be zero or infinite",
                where=f"{source}, learning_rates, own_learning_rates",
                got=", ".join(f"{rate:g}" for rate in plan.rates(method))
                + f", and up to {plan.extension} more at each end",
                fix="choose rates closer together and of a usual size, or set extend: 0 under choose",
            )
        if len(set(extended)) < len(extended):
            raise InputError(
                "the learning rates are too close together to be extended by their factor",
                where=f"{source}, learning_rates, own_learning_rates",
                got=", ".join(f"{rate:g}" for rate in plan.rates(method)),
                fix="choose rates further apart, or set extend: 0 under choose",
            )
    for task in plan.tasks:
        if task.validation_rows is None and max(tries.values()) > 1:
            raise InputError(
                "there are several learning rates but no rows to choose one on",
                where=f"{source}, tasks, {task.name}",
                expected="validation_rows",
            )


def _repeated(names: Sequence[str]) -> set[str]:
    return {name for name in names if names.count(name) > 1}
