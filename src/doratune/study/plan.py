"""A study's plan: what is crossed, which settings all runs share, and how the learning rate is chosen.

Paths in a plan are relative to the working directory, as everywhere on the command line.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

from pydantic import AfterValidator, Field, model_validator

from doratune.data.mix import without_mix
from doratune.data.tasks import get_tasks, plain_name
from doratune.errors import InputError
from doratune.methods.find import get_method, is_method_file, method_names
from doratune.methods.former import SWITCHES, former_method
from doratune.methods.method import Method
from doratune.named_yaml import read_named
from doratune.records.run import Format, Protocol
from doratune.records.study import StudyMethod
from doratune.settings import LaxPath, Positive, Settings, validate
from doratune.study.rates import Added, extended_rates
from doratune.training.config import TrainingSettings

CROSSED = frozenset({"model", "task", "data", "format", "rows", "rank", "alpha", "learning_rate", "seed"})
"""Training settings that the plan has its own keys for."""
EXTENSION = 2
"""How many learning rates may be added at each end, unless the plan says otherwise."""

Item = TypeVar("Item", bound=Hashable)
Rate = Annotated[float, Field(gt=0)]
Seed = Annotated[int, Field(ge=0)]


def _distinct(values: list[Item]) -> list[Item]:
    if len(set(values)) < len(values):
        raise ValueError("an entry is repeated")
    return values


Axis = Annotated[list[Item], Field(min_length=1), AfterValidator(_distinct)]
"""One dimension of the grid: at least one value, each once."""
FurtherAxis = Annotated[list[Item], AfterValidator(_distinct)]
"""The same for a setting that need not be crossed: empty, or values, each once."""


class Sizes(Settings):
    """How large a data set is, for an estimate without its rows."""

    train_rows: Positive
    """Rows to train on."""
    test_rows: Positive
    """Rows to test on, over all tasks."""
    tokens_per_row: Positive
    """Tokens of a training row."""


class PlanTask(Settings):
    """A training set, and the tasks on which models trained on it are tested."""

    train: str | Axis[str]
    """Name of a task or its YAML file, or commonsense-mix; a list is a mixture of them."""
    test: Annotated[list[str], AfterValidator(_distinct)] = Field(default=[])
    """Tasks to test on, by name or YAML file; empty: those that are trained on."""
    also_test: Annotated[list[str], AfterValidator(_distinct)] = Field(default=[])
    """Further tasks, not trained on, that show what is forgotten; not part of any verdict."""
    formats: Axis[Format] = Field(default=["instruct"])
    """instruct, continuation or both."""
    rows: Positive | Axis[Positive] | None = None
    """At most this many training rows, of a mixture per task, drawn by the run's seed; None: all of them. A
    list is crossed."""
    validation_rows: Positive | None = None
    """Rows taken out of train, on which the learning rate is chosen; None: there is only one rate."""
    eval_rows: Positive | None = None
    """Only the first so many test rows of each task."""
    seeds: Axis[Seed] | None = None
    """Seeds of this training set, instead of the plan's."""
    train_data: LaxPath | None = None
    """JSON or JSONL file with the training rows, instead of the hub; for commonsense-mix a folder."""
    test_data: LaxPath | None = None
    """JSON or JSONL file with the test rows of the (one) task, instead of the hub."""
    note: str | None = None
    """What a reader must know about the data."""
    sizes: Sizes | None = None
    """Only for the estimate, if the rows cannot be loaded."""

    @property
    def trained_on(self) -> list[str]:
        """The task, or the tasks of the mixture."""
        return [self.train] if isinstance(self.train, str) else self.train

    @property
    def row_limits(self) -> Sequence[int | None]:
        """The values of ``rows`` that are crossed."""
        return self.rows if isinstance(self.rows, list) else [self.rows]

    @cached_property
    def names(self) -> list[str]:
        """What the task or tasks are called; read once, as their files may be changed while a study runs."""
        return [plain_name(one).lower() for one in self.trained_on]

    @property
    def name(self) -> str:
        """The training set's name in paths and messages."""
        return "+".join(self.names)

    @property
    def tests(self) -> list[str]:
        """The tasks to test on."""
        return list(dict.fromkeys(self.test or without_mix(self.trained_on)))


class Choose(Settings):
    """How learning rates are chosen; ``choice`` has the rule."""

    on: Literal["validation"] = "validation"
    """The rows they are chosen on."""
    per: Literal["seed", "arm"] = "seed"
    """seed: every seed of an arm tries all rates and chooses its own; arm: the first seed chooses for all."""
    extend: Annotated[int, Field(ge=0)] | None = None
    """How many rates may be added at each end of the list while the best is at that end; None: 2."""


class Resources(Settings):
    """What one run needs."""

    cpus: Annotated[float, Field(gt=0)] = 1.0
    """Processor cores of a Ray cluster, for all its processes."""
    gpus: Annotated[float, Field(ge=0)] = 0.0
    """GPUs of a Ray cluster, of one machine; with a fraction, runs share one."""
    processes: Positive | None = None
    """Processes that share each batch, started on one machine as torchrun does; None: one for each GPU."""

    @property
    def of_a_run(self) -> int:
        """How many processes a run has."""
        return self.processes or max(int(self.gpus), 1)


class Assumed(Settings):
    """Speeds for the estimate until a run of the study is finished."""

    tokens_per_second: Annotated[float, Field(gt=0)]
    """Training tokens per second."""
    rows_per_second: Annotated[float, Field(gt=0)]
    """Evaluated rows per second."""
    basis: str
    """Where they were measured, or that they were not."""


class Plan(Settings):
    """Models x methods x tasks x formats x ranks x learning rates x seeds."""

    title: str
    """Headline of the report."""
    question: str
    """What the study asks, in one sentence."""
    models: Axis[str]
    """Built-in names, folders, .gguf files or hub ids."""
    methods: Axis[StudyMethod]
    """Names of methods (doratune methods lists them), or YAML files of your own."""
    own_methods: dict[StudyMethod, Method] = Field(default={})
    """What the files of your own hold, by the methods' names; read once, as they may change while a study
    runs."""
    tasks: Annotated[list[PlanTask], Field(min_length=1)]
    """What is trained on and tested on."""
    ranks: Axis[Positive]
    """Ranks of the adapters."""
    learning_rates: Axis[Rate]
    """Tried for every method without its own list."""
    own_learning_rates: dict[StudyMethod, Axis[Rate]] = Field(default={})
    """Other rates for single methods, as many as the others have."""
    seeds: Axis[Seed]
    """Of the rows drawn, their order, the adapter and dropout; a training set may have its own."""
    batch_sizes: FurtherAxis[Positive] = Field(default=[])
    """Values of batch_size that are crossed; empty: that of settings."""
    epochs: FurtherAxis[Annotated[float, Field(gt=0)]] = Field(default=[])
    """Values of epochs that are crossed; empty: that of settings."""
    data: LaxPath | None = None
    """Folder with <task>/train.json and <task>/test.json, instead of the hub."""
    also_test: Annotated[list[str], AfterValidator(_distinct)] = Field(default=[])
    """also_test of every training set that neither trains on nor tests the task."""
    choose: Choose = Choose()
    """How learning rates are chosen."""
    protocol: Protocol = "likelihood"
    """How the model's answer is determined."""
    alpha_over_rank: Annotated[float, Field(gt=0)] = 2.0
    """Alpha of an adapter is this times its rank, as in the paper."""
    settings: dict[str, Any] = Field(default={})
    """Training settings that all runs share."""
    own_settings: dict[StudyMethod, dict[str, Any]] = Field(default={})
    """Settings of single methods that differ from those, possibly rank and alpha."""
    split_seed: Seed = 0
    """Decides which training rows are taken for validation."""
    eval_batch_size: Positive = 32
    """Rows per forward pass in evaluation."""
    keep_weights: bool = True
    """Whether a run's weights are kept once all results that need them exist."""
    resources: Resources = Resources()
    """What one run needs: of a Ray cluster, and how many processes anywhere."""
    assume: Assumed | None = None
    """Speeds for the estimate of time."""

    @model_validator(mode="before")
    @classmethod
    def _own_methods(cls, values: Any) -> Any:
        """Names in place of files, everywhere."""
        listed = values.get("methods") if isinstance(values, dict) else None
        if not isinstance(listed, list):
            return values
        files = [one for one in listed if isinstance(one, str) and is_method_file(one)]
        if not files:
            return values
        own = {file: get_method(file, where="plan, methods") for file in files}
        names = {file: method.name for file, method in own.items()}
        changed = dict(values) | {
            "methods": [names.get(one, one) if isinstance(one, str) else one for one in listed],
            "own_methods": {method.name: method for method in own.values()},
        }
        for key in ("own_learning_rates", "own_settings"):
            if isinstance(given := values.get(key), dict):
                changed[key] = {names.get(name, name): one for name, one in given.items()}
        return changed

    @model_validator(mode="after")
    def _own_names(self) -> Plan:
        """Refuse definitions under other names than their own, or those of shipped methods."""
        for name, method in self.own_methods.items():
            if name != method.name or name in method_names() or method.trains_all:
                raise ValueError(
                    f"should have {name} under own_methods as its file would: by its own name, which no "
                    "shipped method has, with peft"
                )
        return self

    def method(self, name: StudyMethod) -> Method:
        """One of the plan's methods, shipped or not.

        Raises:
            InputError: There is no such method.
        """
        return self.own_methods.get(name) or get_method(name, where="plan, methods")

    def alpha(self, rank: int) -> float:
        """Alpha of an adapter of this rank; rounded, so that alpha / rank * rank is alpha again."""
        return float(f"{self.alpha_over_rank * rank:.12g}")

    def rates(self, method: StudyMethod) -> list[float]:
        """The learning rates to try for a method, ascending, before any is added."""
        return sorted(self.own_learning_rates.get(method, self.learning_rates))

    def also_tested(self, entry: PlanTask) -> list[str]:
        """The tasks that show what models trained on an entry forget."""
        known = {
            *entry.names,
            *(plain_name(one).lower() for one in without_mix([*entry.trained_on, *entry.tests])),
        }
        shared = [one for one in without_mix(self.also_test) if plain_name(one).lower() not in known]
        return list(dict.fromkeys([*without_mix(entry.also_test), *shared]))

    def seeds_of(self, entry: PlanTask) -> list[int]:
        """The seeds of a training set."""
        return self.seeds if entry.seeds is None else entry.seeds

    @property
    def extension(self) -> int:
        """How many learning rates may be added at each end; a single rate has no factor to go on by."""
        if len(self.rates(self.methods[0])) == 1:
            return 0
        return EXTENSION if self.choose.extend is None else self.choose.extend


def load_plan(name: str, *, data: Path | None = None) -> Plan:
    """Read a shipped plan by name, or any YAML file by path.

    Args:
        name: The name or path.
        data: Replaces the plan's data folder.

    Raises:
        InputError: There is no such plan, or it cannot be run.
    """
    values, source = read_named(name, kind="plan", where="PLAN", package="doratune.study", folder="plans")
    _check_choice(values, source)
    plan = validate(Plan, values, where=source)
    _check_settings(plan, source)
    check_plan(plan, source)
    return plan if data is None else plan.model_copy(update={"data": data})


def recorded_plan(values: dict[str, Any], *, where: str) -> Plan:
    """The plan in a study's record, also as older versions wrote it.

    Args:
        values: What the record holds.
        where: The record, for messages.

    Raises:
        InputError: It is not a plan.
    """
    settings, tasks = values.get("settings"), values.get("tasks")
    if isinstance(settings, dict) and settings.keys() & set(SWITCHES):
        values = values | {
            "methods": [former_method(one, settings) for one in values.get("methods", [])],
            "settings": {key: value for key, value in settings.items() if key not in SWITCHES},
        }
    if isinstance(tasks, list) and any("limit" in task for task in tasks if isinstance(task, dict)):
        values = values | {
            "tasks": [_renamed(task, "limit", "eval_rows") for task in tasks],
            "settings": {"warmup_steps": 100} | values.get("settings", {}),  # the default at that time
        }
    return validate(Plan, values, where=where)


def _renamed(values: dict[str, Any], old: str, new: str) -> dict[str, Any]:
    return {new if key == old else key: value for key, value in values.items()}


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


def _check_choice(values: dict[str, Any], source: str) -> None:
    choose = values.get("choose")
    if isinstance(choose, dict) and choose.get("on") == "test":
        raise InputError(
            "a learning rate chosen on the test rows would make their accuracy worthless",
            where=source,
            got="choose: {on: test}",
            expected="choose: {on: validation}",
        )


def _check_settings(plan: Plan, source: str) -> None:
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
