"""The record of ``benchmarks/pipeline``, schema version 1: cost of training and evaluation in two ways."""

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
    """The settings of both sides for training and generation."""

    rank: Size  #: rank r of the adapter
    alpha: float  #: the adapter is scaled by alpha / rank
    dropout: Share  #: on the adapter's input
    targets: list[str]  #: names of the adapted layers
    batch_size: Size  #: rows per optimizer step
    epochs: float  #: passes over the training rows
    cutoff: Size  #: longest row in tokens
    learning_rate: float  #: AdamW's peak learning rate
    warmup_steps: Count  #: steps before the learning rate falls linearly
    format: Format  #: how a row becomes a prompt and its answer
    loss_on: Literal["answer", "prompt-and-answer"]  #: which tokens are trained on
    seed: Count  #: seed of the rows, their order and the adapter
    dtype: str  #: as requested; ``PipelineBenchRecord.model`` has the dtype used


class PhaseCost(Record):
    """One command, from its start to its end."""

    seconds: Seconds  #: wall time, including Python's start, imports and loading
    peak_bytes: Count  #: peak resident memory of the process, as counted by the kernel


class Agreement(Record):
    """How the answers of both sides agree: beam search with the same adapter on the same rows."""

    rows: Size  #: rows that both answered
    same: Count  #: rows with the same answer, including no answer on both sides
    differing: list[Count]  #: the other rows, counted from 0


class PipelineRound(Record):
    """Every phase once."""

    first: Side  #: whose phases went before the other's
    phases: dict[Phase, PhaseCost]  #: each phase's cost
    steps: dict[Side, Count]  #: optimizer steps of the training
    final_loss: dict[Side, FiniteOrNone]  #: the last training loss; None if it was not finite
    accuracy: dict[Phase, Share]  #: accuracy of each evaluation, all with the adapter that doratune trained
    same_answers: Agreement  #: agreement of the two phases that generate
    ratios: dict[Literal["generate", "likelihood"], Ratio]
    #: how many times as long the reference's training and generation take as doratune's training and its
    #: evaluation by this protocol


class PipelineVerdict(Record):
    """A target and the measured figure."""

    figure: Figure  #: a ratio of times by protocol, or the share of rows with the same answer
    at_least: Ratio  #: the lowest figure that meets it
    measured: Ratio  #: the median of the rounds; for the share of same answers, the lowest
    met: bool  #: measured >= at_least


class PipelineBenchRecord(Record):
    """The whole of the file."""

    kind: ClassVar[str] = "doratune.bench"
    version: ClassVar[int] = 1

    schema_name: Literal["doratune.bench"] = Field(default="doratune.bench", alias="schema")  #: file kind
    schema_version: Literal[1] = 1  #: raised when a reader of the old version could not read the new
    what: Literal["pipeline"] = "pipeline"  #: what was measured: training and evaluation as commands
    task: str  #: the task of the rows
    model: ModelRecord  #: the base model
    settings: PipelineSettings  #: the same on both sides
    train_data: DataRecord  #: the training file, by its name
    train_rows: Size  #: how many of its rows were trained on
    test_data: DataRecord  #: the test file, by its name
    test_rows: Size  #: how many of its rows were evaluated
    rounds: Annotated[list[PipelineRound], Field(min_length=1)]  #: one entry per round
    verdicts: list[PipelineVerdict]  #: the targets
    machine: Machine  #: where it was measured
    started: AwareDatetime  #: start, ISO 8601 with time zone
    finished: AwareDatetime  #: end, ISO 8601 with time zone
