"""The file of ``benchmarks/pipeline``, schema version 1: training and evaluation in time, in two ways."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

from pydantic import AwareDatetime, Field

from doratune.records.base import FiniteOrNone, Record
from doratune.records.bench import Machine, Ratio, Size
from doratune.records.run import Count, DataRecord, Format, ModelRecord, Seconds, Share

Side = Literal["doratune", "reference"]
Phase = Literal[
    "doratune-train", "doratune-generate", "doratune-likelihood", "reference-train", "reference-generate"
]
Figure = Literal["generate", "likelihood", "same_answers"]


class PipelineSettings(Record):
    """What both sides train and generate with."""

    rank: Size  #: rank r of the adapter
    alpha: float  #: the adapter is scaled by alpha / rank
    dropout: Share  #: on the adapter's input
    targets: list[str]  #: names of the adapted layers
    batch_size: Size  #: rows per optimizer step
    epochs: float  #: passes over the training rows
    cutoff: Size  #: longest row in tokens
    learning_rate: float  #: peak of AdamW's
    warmup_steps: Count  #: before the learning rate falls linearly
    format: Format  #: how a row becomes a prompt and its answer
    loss_on: Literal["answer", "prompt-and-answer"]  #: which tokens are trained on
    seed: Count  #: of the rows, their order and the adapter
    dtype: str  #: as it was asked for; ``PipelineBenchRecord.model`` says what it came to


class PhaseCost(Record):
    """One command, from its start to its end."""

    seconds: Seconds  #: wall time, with Python's start, imports and loading
    peak_bytes: Count  #: highest resident memory of the process, as the kernel counted it


class Agreement(Record):
    """The answers of both sides by beam search, for the same adapter and rows."""

    rows: Size  #: rows that both answered
    same: Count  #: rows with the same answer; none on both sides is the same too
    differing: list[Count]  #: the other rows, counted from 0


class PipelineRound(Record):
    """Every phase once."""

    first: Side  #: whose phases went before the other's
    phases: dict[Phase, PhaseCost]  #: what each took
    steps: dict[Side, Count]  #: optimizer steps of the training
    final_loss: dict[Side, FiniteOrNone]  #: the last training loss, None where it was not finite
    accuracy: dict[Phase, Share]  #: of the phases that evaluate, all with the adapter that doratune trained
    same_answers: Agreement  #: of the two phases that generate
    ratios: dict[Literal["generate", "likelihood"], Ratio]
    #: how many times as long the reference's training and generation take as doratune's training and its
    #: evaluation by this protocol


class PipelineVerdict(Record):
    """A target and what was measured."""

    figure: Figure  #: a ratio of times by protocol, or the share of rows with the same answer
    at_least: Ratio  #: the lowest figure that meets it
    measured: Ratio  #: the median of the rounds; of the share of same answers the lowest
    met: bool  #: measured >= at_least


class PipelineBenchRecord(Record):
    """The whole of the file."""

    kind: ClassVar[str] = "doratune.bench"
    version: ClassVar[int] = 1

    schema_name: Literal["doratune.bench"] = Field(default="doratune.bench", alias="schema")  #: file kind
    schema_version: Literal[1] = 1  #: raised when a reader of the old version could not read the new
    what: Literal["pipeline"] = "pipeline"  #: what was measured: training and evaluation as commands
    task: str  #: whose rows were evaluated
    model: ModelRecord  #: the base model
    settings: PipelineSettings  #: the same on both sides
    train_data: DataRecord  #: the training file, by its name
    train_rows: Size  #: rows of it that were trained on
    test_data: DataRecord  #: the test file, by its name
    test_rows: Size  #: rows of it that were evaluated
    rounds: Annotated[list[PipelineRound], Field(min_length=1)]  #: one entry per round
    verdicts: list[PipelineVerdict]  #: the targets
    machine: Machine  #: where it was measured
    started: AwareDatetime  #: start, ISO 8601 with time zone
    finished: AwareDatetime  #: end, ISO 8601 with time zone
