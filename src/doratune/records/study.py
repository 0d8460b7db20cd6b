"""study.json, schema version 1: what a study set out to do, what every run came to, and what can be told."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field

from doratune.records.base import FiniteOrNone, Record
from doratune.records.comparison import ArmResult
from doratune.records.run import (
    Count,
    DataRecord,
    Environment,
    Format,
    Metric,
    ParameterCount,
    Protocol,
    Share,
    TrainingRecord,
)

StudyMethod = Literal["lora", "dora", "dora-attached-norm", "full"]
Outcome = Literal["better", "worse", "undecided"]

METHOD_NAMES: dict[StudyMethod, str] = {
    "lora": "LoRA",
    "dora": "DoRA",
    "dora-attached-norm": "DoRA with attached norm",
    "full": "full fine-tuning",
}
"""The methods as sentences name them."""


class Trial(Record):
    """One try of a learning rate, judged on the validation rows."""

    learning_rate: Annotated[float, Field(gt=0)]  #: peak learning rate that was tried
    accuracy: Share  #: on the validation rows
    rows: Annotated[int, Field(gt=0)]  #: validation rows
    run: str  #: run directory, relative to the study's folder
    chosen: bool  #: True for the one that the test set was then read with


class SeedRun(Record):
    """One run of an arm that was evaluated on the test rows."""

    seed: Count  #: seed of rows, order, adapter and dropout
    run: str  #: run directory, relative to the study's folder
    result: ArmResult  #: on the test rows
    parameters: ParameterCount  #: how much was trained
    training: TrainingRecord  #: what training took
    curve: list[tuple[int, FiniteOrNone]]  #: (step, training loss), loss None where it was not finite


class StudyArm(Record):
    """One method in one cell: its search for a learning rate and its runs on the test rows."""

    method: StudyMethod  #: what was trained
    trials: list[Trial]  #: every learning rate that was tried, ascending
    learning_rate: Annotated[float, Field(gt=0)]  #: the one that was chosen
    runs: Annotated[list[SeedRun], Field(min_length=1)]  #: one per seed, ascending
    mean: Share  #: mean accuracy over the seeds
    interval: tuple[Share, Share]  #: 95 %, bootstrap over seeds, then over rows


class SeedDifference(Record):
    """Two runs of one seed on the same rows."""

    seed: Count  #: the seed both share
    points: float  #: accuracy of ``to`` minus accuracy of ``from``, in percentage points
    only_from: Count  #: rows that only the first had right
    only_to: Count  #: rows that only the second had right
    p_value: Share  #: McNemar's exact test, two-sided


class Needed(Record):
    """How large the study would have to be to tell a difference of so many points."""

    points: Annotated[float, Field(gt=0)]  #: the true difference, in percentage points
    rows: Count | None  #: test rows needed with the seeds there are; None: no number of rows is enough
    seeds: Count | None  #: seeds needed with the rows there are; None: no number of seeds is enough


class StudyDifference(Record):
    """``to`` minus ``from`` over all their seeds."""

    from_method: StudyMethod = Field(validation_alias="from", serialization_alias="from")  #: first method
    to_method: StudyMethod = Field(validation_alias="to", serialization_alias="to")  #: second method
    points: float  #: mean difference in percentage points
    interval: tuple[float, float]  #: 95 %, paired bootstrap over seeds, then over rows, in points
    p_value: Share  #: two-sided, of no difference
    p_adjusted: Share  #: corrected over the tasks of the family
    outcome: Outcome  #: what p_adjusted says at 5 %
    verdict: str  #: the outcome in words
    seeds: list[SeedDifference]  #: per seed; empty for a pooled difference
    needed: list[Needed]  #: what telling smaller differences would take; empty for a pooled difference


class StudyCell(Record):
    """One task in one format at one rank with one model: everything that was held equal."""

    model: str  #: name of the base model
    task: str  #: name of the task
    sample: bool  #: True for a built-in sample, which is no benchmark
    format: Format  #: how a row becomes a prompt and its candidate answers
    protocol: Protocol  #: how the model's answer is taken
    metric: Metric  #: which accuracy is reported
    rank: Annotated[int, Field(gt=0)]  #: rank of the adapters
    rows: Annotated[int, Field(gt=0)]  #: test rows every run was evaluated on
    chance: Share  #: expected accuracy of a guess
    majority: Share  #: accuracy of always giving the most frequent answer
    train: DataRecord  #: rows trained on
    validation: DataRecord  #: rows the learning rate was chosen on, taken out of the training rows
    test: DataRecord  #: rows of the result
    note: str | None  #: what a reader must know about the data, such as another split than the paper's
    base: ArmResult | None  #: the model before training
    arms: Annotated[list[StudyArm], Field(min_length=1)]  #: the methods, in the plan's order
    differences: list[StudyDifference]  #: dora minus lora first, then the others against lora


class PooledDifference(Record):
    """A difference over several cells, each cell weighing the same."""

    model: str  #: name of the base model
    rank: Annotated[int, Field(gt=0)]  #: rank of the adapters
    cells: list[str]  #: the cells, as "task (format)"
    difference: StudyDifference  #: mean of the cells' differences


class StudyRecord(Record):
    """The whole of study.json."""

    kind: ClassVar[str] = "doratune.study"
    version: ClassVar[int] = 1

    schema_name: Literal["doratune.study"] = Field(default="doratune.study", alias="schema")  #: file kind
    schema_version: Literal[1] = 1  #: raised when a reader of the old version could not read the new
    title: str  #: headline of the report
    question: str  #: what the study asks, in one sentence
    plan: dict[str, Any]  #: the whole plan as it was run
    cells: list[StudyCell]  #: the finished cells, in the plan's order
    pooled: list[PooledDifference]  #: over the cells of a model and rank
    pending: list[str]  #: cells that are not finished, as "task (format)"
    settings: dict[str, bool | int | float | str | list[str] | None]  #: what all runs share
    notes: list[str]  #: what a reader must know
    environment: Environment  #: where the runs took place (the last of them, if they differ)
    environments: Annotated[int, Field(gt=0)]  #: how many different environments the runs saw
    reproduce: str  #: the command that gives this study
