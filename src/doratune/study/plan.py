"""A study's plan: what is crossed, which settings all runs share, and how the learning rate is chosen.

Paths in a plan are relative to the working directory, as everywhere on the command line.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from functools import cached_property
from typing import Annotated, Any, Literal, TypeVar

from pydantic import AfterValidator, Field, model_validator

from doratune.data.mix import without_mix
from doratune.data.tasks import plain_name
from doratune.errors import InputError
from doratune.methods.find import get_method, is_method_file, method_names, refuse_match
from doratune.methods.method import Method
from doratune.records.run import Format, Protocol
from doratune.records.study import StudyMethod
from doratune.settings import LaxPath, Positive, Seed, Settings

CROSSED = frozenset({"model", "task", "data", "format", "rows", "rank", "alpha", "learning_rate", "seed"})
"""Training settings that the plan has its own keys for."""
EXTENSION = 2
"""How many learning rates may be added at each end, unless the plan says otherwise."""
MOST_ADDED = 20
"""The most that a plan may add at each end."""

Item = TypeVar("Item", bound=Hashable)
Rate = Annotated[float, Field(gt=0)]


def _distinct(values: list[Item]) -> list[Item]:
    if len(set(values)) < len(values):
        raise ValueError("an entry is repeated")
    return values


Axis = Annotated[list[Item], Field(min_length=1), AfterValidator(_distinct)]
"""One dimension of the grid: at least one value, each once."""
FurtherAxis = Annotated[list[Item], AfterValidator(_distinct)]
"""The same for a setting that need not be crossed: empty, or values, each once."""


def _refuse_one_name(names: Mapping[str, str]) -> None:
    """Refuse several files that define a method of one name, given the names by file."""
    for name in names.values():
        files = [file for file, one in names.items() if one == name]
        if len(files) > 1:
            raise InputError(
                "several files define a method of one name",
                where="methods",
                got=f"{name} in {', '.join(files)}",
                fix="give each another name",
            )


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
    extend: Annotated[int, Field(ge=0, le=MOST_ADDED)] | None = None
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
        _refuse_one_name(names)
        changed = dict(values) | {
            "methods": [names.get(one, one) if isinstance(one, str) else one for one in listed],
            "own_methods": {method.name: method for method in own.values()},
        }
        for key in ("own_learning_rates", "own_settings"):
            if isinstance(given := values.get(key), dict):
                changed[key] = {names.get(name, name): one for name, one in given.items()}
                if len(changed[key]) < len(given):
                    raise InputError(
                        "a method is named twice, by its file and by its name",
                        where=f"plan, {key}",
                        got=", ".join(map(str, given)),
                        fix="name it once",
                    )
        return changed

    @model_validator(mode="after")
    def _own_names(self) -> Plan:
        """Refuse definitions under other names than their own, or those of shipped methods."""
        if unlisted := sorted(self.own_methods.keys() - {*self.methods}):
            raise ValueError(f"own_methods should be among methods, got {', '.join(unlisted)}")
        for name, method in self.own_methods.items():
            refuse_match(method, "plan, own_methods")
            if name != method.name or name in method_names() or method.trains_all:
                raise ValueError(
                    f"own_methods should have {name} as its file would: by its own name, which no shipped "
                    "method has, with peft"
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
