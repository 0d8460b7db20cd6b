"""comparison.json, schema version 1: several runs side by side, with what can be told from them."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

from pydantic import Field

from doratune.records.base import FiniteOrNone, Record, Scalar
from doratune.records.run import (
    Count,
    Environment,
    Format,
    Method,
    Metric,
    ParameterCount,
    Protocol,
    Share,
    TrainingRecord,
)
from doratune.records.study import ArmResult


class Arm(Record):
    """One run in the comparison."""

    name: str  #: name of the run, unique in the comparison
    method: Method  #: what was trained
    run: str  #: run directory, relative to the folder that holds the compared runs
    parameters: ParameterCount | None  #: how much was trained, None when nothing was
    training: TrainingRecord | None  #: what training took, None when nothing was trained
    curve: list[tuple[int, FiniteOrNone]]  #: (step, training loss), loss None where it was not finite
    engine: Literal["doratune", "peft"] | None  #: what computed the adapter, None when there is none


class PairedDifference(Record):
    """Two arms on the same rows: accuracy of ``to`` minus accuracy of ``from``."""

    from_arm: str = Field(validation_alias="from", serialization_alias="from")  #: name of the first arm
    to_arm: str = Field(validation_alias="to", serialization_alias="to")  #: name of the second arm
    points: float  #: difference in percentage points
    only_from: Count  #: rows that only the first arm had right
    only_to: Count  #: rows that only the second arm had right
    p_value: Share  #: McNemar's exact test, two-sided
    verdict: str  #: the outcome in words


class TaskResult(Record):
    """One task in one format with one protocol."""

    task: str  #: name of the task
    sample: bool  #: True for a built-in sample, which is no benchmark
    format: Format  #: how a row becomes a prompt and its candidate answers
    protocol: Protocol  #: how the model's answer is taken
    metric: Metric  #: which accuracy is reported
    rows: Annotated[int, Field(gt=0)]  #: rows that every arm was evaluated on
    chance: Share  #: expected accuracy of a guess
    majority: Share  #: accuracy of always giving the most frequent answer
    arms: dict[str, ArmResult]  #: by name of the arm; an arm that was not evaluated here is missing
    difference: PairedDifference | None  #: DoRA against LoRA, None when one of them is missing


class Comparison(Record):
    """The whole of comparison.json."""

    kind: ClassVar[str] = "doratune.comparison"
    version: ClassVar[int] = 1

    schema_name: Literal["doratune.comparison"] = Field(
        default="doratune.comparison", alias="schema"
    )  #: file kind
    schema_version: Literal[1] = 1  #: raised when a reader of the old version could not read the new
    title: str  #: headline of the report
    arms: Annotated[list[Arm], Field(min_length=1)]  #: the runs, in the order they were given
    tasks: list[TaskResult]  #: the results, in the order they were first seen
    settings: dict[str, Scalar | list[Scalar]]  #: what the runs share: model, data, configuration
    notes: list[str]  #: what a reader must know before comparing, such as settings that differ
    environment: Environment  #: where the runs took place (the last of them, if they differ)
    reproduce: str  #: the command that gives this comparison
    paper: None = None  #: kept for published numbers; always null in version 1
