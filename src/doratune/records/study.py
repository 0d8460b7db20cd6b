"""study.json, schema version 3: the compared runs, their results, and the differences between them.

A study, a comparison (a study of one model, training set and rank) and a report of existing runs are all
written as this record.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field

from doratune.methods.find import title_of
from doratune.methods.former import former_method
from doratune.records.base import FiniteOrNone, Record, Setting
from doratune.records.run import (
    Count,
    DataRecord,
    Environment,
    Format,
    Metric,
    ParameterCount,
    Protocol,
    RowMeasures,
    RunRecord,
    Seconds,
    Share,
    TrainingRecord,
)

StudyMethod = Annotated[str, Field(min_length=1)]
"""The name of a method, shipped or not."""
RowMeasure = Literal["nll", "nll_per_byte", "brier"]
KeptMeasure = Literal["accuracy", "nll", "nll_per_token"]
Outcome = Literal["better", "worse", "undecided", "no-verdict"]
End = Literal["smallest", "largest"]

NO_VERDICT: Outcome = "no-verdict"
"""The outcome of a difference between arms of which neither is shown to have learned anything."""
IN_WORDS: Mapping[Outcome, str] = MappingProxyType({"better": "more accurate", "worse": "less accurate"})
"""The outcomes that say something, with the measure that they are about."""


def arm_name(name: str) -> str:
    """An arm's name in sentences: the method's title if the arm is named after a shipped method."""
    return title_of(name)


def method_of(record: RunRecord) -> StudyMethod:
    """The method of a run that trained something, also as older versions wrote it."""
    assert record.method != "base"
    return former_method(record.method, record.config)


class MostGiven(Record):
    """The answer that a run gave to most of its rows."""

    answer: str | None  #: its label; None if the text had no answer
    share: Share  #: of the rows


class ArmResult(Record):
    """The result of one run on the test rows of a cell."""

    accuracy: Share  #: mean over the rows; a tie of k candidates that includes the right one counts 1/k
    interval: tuple[Share, Share]  #: Wilson 95 % interval
    correct: Count  #: rows that were right, without ties
    tied: Count | None = None  #: rows whose best score several candidates share; None: generated, or older
    unmatched: Count  #: rows without a readable answer
    measures: RowMeasures | None = None  #: from its scores; None if it has none, or in older versions


class Trial(Record):
    """One learning rate tried, judged on the validation rows."""

    learning_rate: Annotated[float, Field(gt=0)]  #: peak learning rate that was tried
    seed: Count | None = None  #: seed of the run; None in records of older versions without a plan
    accuracy: Share | None  #: on the validation rows; None if training diverged
    nll: Annotated[float, Field(ge=0)] | None = (
        None  #: mean negative log-likelihood of the right answers; None: diverged, generated, or older
    )
    rows: Annotated[int, Field(gt=0)]  #: validation rows
    run: str  #: run directory, relative to the study's folder
    chosen: bool  #: True for those whose rate is used on the test set


class DivergedRun(Record):
    """A run of a cell that stopped at a loss, gradient or weight that is not finite."""

    arm: str  #: name of the arm, which may have no other run
    method: StudyMethod  #: what was trained
    learning_rate: Annotated[float, Field(gt=0)]  #: peak learning rate
    seed: Count  #: seed of rows, order, adapter and dropout
    run: str  #: run directory, relative to the study's folder
    trial: bool  #: whether it only served to choose the learning rate
    seconds: Seconds  #: wall time that it took
    message: str  #: what training said


class MeasureMean(Record):
    """The mean of a measure over seeds and rows."""

    mean: float  #: in the measure's unit
    interval: tuple[float, float]  #: 95 %, over seeds and rows (rows only for one seed)


class MeasureDifference(Record):
    """Two sides of a comparison by one measure, paired by seed and row."""

    mean: float  #: the second minus the first, in the measure's unit
    interval: tuple[float, float]  #: 95 %, over seeds and rows (rows only for one seed)
    p_value: Share  #: two-sided, for no difference; not corrected


class MeasuredPair(Record):
    """The difference of two arms by a measure other than accuracy."""

    from_arm: str = Field(validation_alias="from", serialization_alias="from")  #: name of the first arm
    to_arm: str = Field(validation_alias="to", serialization_alias="to")  #: name of the second arm
    measure: RowMeasure  #: see ``RowMeasures``; less is better
    difference: MeasureDifference  #: ``to`` minus ``from``


class SeedRun(Record):
    """One run of an arm that was evaluated on the test rows."""

    seed: Count  #: seed of rows, order, adapter and dropout
    learning_rate: Annotated[float, Field(gt=0)] | None = None  #: its peak learning rate; None if unknown
    run: str  #: run directory, relative to the study's folder or to the folder that holds the compared runs
    result: ArmResult  #: on the test rows
    most_given: MostGiven | None = None  #: its most common answer; None in records of older versions
    parameters: ParameterCount  #: how much was trained
    training: TrainingRecord | None  #: its training; None for an adapter that was trained elsewhere
    inference_tokens_per_second: Annotated[float, Field(ge=0)] | None = (
        None  #: on the built-in text, with the adapter kept apart; None if it was not scored
    )
    curve: list[tuple[int, FiniteOrNone]]  #: (step, training loss), loss None if it was not finite


class StudyArm(Record):
    """One side of a comparison: a method, its search for a learning rate and its runs on the test rows."""

    name: str  #: unique in the cell: the method, or a run's name if several arms have the same method
    method: StudyMethod  #: what was trained
    engine: Literal["doratune", "peft"] | None  #: what computed the adapter; None without one
    trials: list[Trial]  #: every learning rate tried, ascending, for each seed; empty without a search
    learning_rate: (
        Annotated[float, Field(gt=0)] | None
    )  #: of all the runs below; None if they differ or are unknown
    runs: Annotated[list[SeedRun], Field(min_length=1)]  #: one per seed, ascending
    mean: Share  #: mean accuracy over the seeds
    interval: tuple[Share, Share]  #: 95 %, over seeds and rows; Wilson's for one seed
    measures: dict[RowMeasure, MeasureMean] = Field(default={})  #: empty without scores, or in older versions


class SeedDifference(Record):
    """Two runs of one seed on the same rows."""

    seed: Count | None  #: the seed both share; None for two single runs of different seeds
    points: float  #: accuracy of ``to`` minus accuracy of ``from``, in percentage points
    only_from: Count  #: rows that only the first had right, or counted more for it because of ties
    only_to: Count  #: the same for the second
    p_value: Share  #: McNemar's exact test, two-sided; with ties the sign-flip test, which generalises it
    same_answers: Count | None = (
        None  #: rows with the same answer from both; None in records of older versions
    )


class Needed(Record):
    """How large the study would have to be to detect a difference of this size.

    To detect means p below 5 % before correction, in four studies out of five.
    """

    points: Annotated[float, Field(gt=0)]  #: the true difference, in percentage points
    rows: Count | None  #: test rows needed with this study's seeds; None: no number is enough
    seeds: Count | None  #: seeds needed with this study's rows; None: no number is enough, or one seed
    rows_range: tuple[Count | None, Count | None] | None = (
        None  #: for ``rows``, from the 80 % bounds of the variances; None in records of older versions
    )
    seeds_range: tuple[Count | None, Count | None] | None = (
        None  #: the same for ``seeds``; None with one seed too
    )


class StudyDifference(Record):
    """``to`` minus ``from`` over all their seeds."""

    from_arm: str = Field(validation_alias="from", serialization_alias="from")  #: name of the first arm
    to_arm: str = Field(validation_alias="to", serialization_alias="to")  #: name of the second arm
    points: float  #: mean difference in percentage points
    interval: tuple[float, float]  #: 95 %, paired, over seeds and rows (rows only for one seed), in points
    p_value: Share  #: two-sided, for no difference, as the interval; for one seed, the seed's p
    p_adjusted: Share  #: corrected over the tasks of the family; ``p_value`` without a verdict
    outcome: Outcome  #: the result of ``p_adjusted`` at 5 %; no-verdict: neither arm is shown to have learned
    verdict: str  #: the outcome in words, or why there is none
    seeds: list[SeedDifference]  #: per seed; empty for a pooled difference
    needed: list[Needed]  #: what detecting smaller differences would take; empty for a pooled difference


class SameRate(Record):
    """Two arms at one learning rate that both tried, the best for both together on the validation rows."""

    learning_rate: Annotated[
        float, Field(gt=0)
    ]  #: chosen by the arms' own rule, on means over both and all seeds
    from_mean: Share  #: mean accuracy of the first arm on the test rows, over the seeds of the difference
    to_mean: Share  #: the same for the second
    difference: StudyDifference  #: on the test rows; not among the corrected differences


class StudyCell(Record):
    """One task in one format at one rank with one model: everything the arms have in common."""

    model: str  #: name of the base model
    task: str  #: name of the task
    sample: bool  #: True for a built-in sample, which is not a benchmark
    format: Format  #: how a row becomes a prompt and its candidate answers
    protocol: Protocol  #: how the model's answer is obtained
    metric: Metric  #: which accuracy is reported
    rank: Annotated[int, Field(gt=0)] | None  #: rank of the adapters; None if they differ or there are none
    batch_size: Annotated[int, Field(gt=0)] | None = (
        None  #: rows of an optimizer step; None: they differ, or older
    )
    epochs: Annotated[float, Field(gt=0)] | None = (
        None  #: passes over the training rows; None: they differ, given as steps, or older
    )
    training_rows: Annotated[int, Field(gt=0)] | None = (
        None  #: most rows of a task to train on, drawn by the seed; None: all, or older
    )
    rows: Annotated[int, Field(gt=0)]  #: test rows every run was evaluated on
    chance: Share  #: expected accuracy of a guess
    majority: Share  #: accuracy of always giving the most frequent answer
    train: DataRecord | None  #: rows trained on; None if the runs differ or nothing was trained
    validation: DataRecord | None  #: training rows held out to choose the learning rate on; None: none
    test: DataRecord  #: rows of the result
    note: str | None  #: what a reader must know about the data, such as another split than the paper's
    base: ArmResult | None  #: the model before training; None if it was not evaluated
    arms: list[StudyArm]  #: in the order of the plan or of the runs; those without a result are missing
    differences: list[StudyDifference]  #: dora minus lora first, then the other methods against lora
    chosen_per: Literal["seed", "arm"] | None = (
        None  #: seed: each chose its rate; arm: the first seed chose for all; None: no search
    )
    extended: tuple[Count, Count] | None = (
        None  #: rates added below and above the plan's, because the best was at that end; None: no search
    )
    validation_majority: Share | None = (
        None  #: accuracy on the validation rows of always giving the most frequent answer
    )
    same_rate: list[SameRate] = Field(
        default=[]
    )  #: for each pair of ``differences``; a pair without a shared rate is missing
    measures: list[MeasuredPair] = Field(
        default=[]
    )  #: for each pair of ``differences`` whose runs have scores
    diverged: list[DivergedRun] = Field(default=[])  #: runs without a result, including trials
    alike: list[list[str]] = Field(
        default=[]
    )  #: groups of runs (or the base) with the same answer to every row
    tells_nothing: str | None = None  #: why no arm is shown to have learned anything; None if one is

    @property
    def floor(self) -> float:
        """The better accuracy of a guess and of always giving the most frequent answer."""
        return max(self.chance, self.majority)


class PooledDifference(Record):
    """The mean difference over several cells, each with the same weight.

    If some cells have no verdict, there are two: the headline without them, then one with them.
    """

    model: str  #: name of the base model
    rank: Annotated[int, Field(gt=0)] | None  #: rank of the adapters, as in the cells
    batch_size: Annotated[int, Field(gt=0)] | None = None  #: as in the cells
    epochs: Annotated[float, Field(gt=0)] | None = None  #: as in the cells
    training_rows: Annotated[int, Field(gt=0)] | None = None  #: as in the cells, if the plan crosses them
    cells: list[str]  #: the cells, as "task (format)"
    tells_nothing: list[str] = Field(default=[])  #: those of ``cells`` that have no verdict
    one_seed: bool = False  #: whether the cells have one seed each; they are pooled among themselves
    difference: StudyDifference  #: mean of the cells' differences


class KeptArm(Record):
    """What the runs of one arm keep."""

    name: str  #: name of the arm, as in its cells
    seeds: list[Count]  #: the seeds of its runs, ascending
    value: MeasureMean  #: over its runs
    change: MeasureDifference | None  #: minus the base model, paired by row; None if that was not measured


class KeptPair(Record):
    """The difference of two arms in what they keep."""

    from_arm: str = Field(validation_alias="from", serialization_alias="from")  #: name of the first arm
    to_arm: str = Field(validation_alias="to", serialization_alias="to")  #: name of the second arm
    difference: MeasureDifference  #: ``to`` minus ``from``, over the seeds that both have


class Forgetting(Record):
    """What the arms of one training keep of what they were not trained on, by one measure."""

    model: str  #: name of the base model
    trained_on: str  #: name of the training set
    format: Format | None  #: how it was trained on and the task is asked; None if the runs differ
    rank: Annotated[int, Field(gt=0)] | None = None  #: as in the cells
    batch_size: Annotated[int, Field(gt=0)] | None = None  #: as in the cells
    epochs: Annotated[float, Field(gt=0)] | None = None  #: as in the cells
    training_rows: Annotated[int, Field(gt=0)] | None = None  #: as in the cells
    about: str  #: name of the task, or of the built-in text
    measure: KeptMeasure  #: accuracy and nll of a task, nll_per_token of the text
    rows: Annotated[int, Field(gt=0)]  #: rows of the task, or paragraphs of the text
    bytes_per_token: Annotated[float, Field(gt=0)] | None = None  #: of the text; None for a task
    base: float | None  #: the base model's mean; None if it was not measured
    arms: list[KeptArm]  #: those whose runs were all measured
    differences: list[KeptPair]  #: the pairs that the cells compare


class StudyRecord(Record):
    """The whole study.json."""

    kind: ClassVar[str] = "doratune.study"
    version: ClassVar[int] = 3

    schema_name: Literal["doratune.study"] = Field(default="doratune.study", alias="schema")  #: file kind
    schema_version: Literal[3] = 3  #: raised when a reader of the old version could not read the new
    title: str  #: headline of the report
    question: str | None  #: the study's question, in one sentence; None for runs without a plan
    plan: dict[str, Any] | None  #: the whole plan as it was run; None for runs without a plan
    inputs: dict[str, str]  #: what identifies the plan's models and rows, by their name
    cells: list[StudyCell]  #: the finished cells, in the plan's order
    pooled: list[PooledDifference]  #: over the cells of a model and rank
    forgetting: list[Forgetting] = Field(default=[])  #: what the runs keep; not part of any verdict
    pending: list[str]  #: cells that are not finished, as "task (format)"
    left_out: list[str] = Field(default=[])  #: tasks of the plan that --only left out
    settings: dict[str, Setting]  #: the settings that all runs share
    differing: dict[str, dict[str, Setting]] = Field(
        default={}
    )  #: other settings: the value in each arm or run
    notes: list[str]  #: what a reader must know
    environment: Environment  #: where the runs took place (the last of them, if they differ)
    environments: Annotated[int, Field(gt=0)]  #: number of different environments of the runs
    reproduce: str  #: the command that gives this study


def ends_chosen(arm: StudyArm) -> list[End]:
    """The ends of the rates tried at which a chosen one is; a rate beyond might have done better."""
    tried = {one.learning_rate for one in arm.trials}
    chosen = {one.learning_rate for one in arm.trials if one.chosen}
    ends: dict[End, float] = {"smallest": min(tried), "largest": max(tried)} if len(tried) > 1 else {}
    return [end for end, rate in ends.items() if rate in chosen]


def no_better_than_majority(cell: StudyCell, arm: StudyArm) -> list[Trial]:
    """The chosen trials that are no more accurate than always giving the most frequent answer."""
    limit = cell.validation_majority
    if limit is None:
        return []
    return [one for one in arm.trials if one.chosen and one.accuracy is not None and one.accuracy <= limit]
