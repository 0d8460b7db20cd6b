"""What the commands after training print with --json and leave in their folders."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from doratune.records.base import Record
from doratune.records.run import Count, Environment, Format, Metric, Share

Distance = Annotated[float, Field(ge=0)]


class LogitCheck(Record):
    """How far two models' predictions of the next token are apart, over the positions of a few rows."""

    rows: Count  #: rows that both models read
    positions: Count  #: positions that were compared, each over the whole vocabulary
    largest: Distance  #: largest difference of a log-probability
    mean: Distance  #: mean difference of a log-probability
    top1: Share  #: share of positions with the same most likely token
    kl_mean: Distance  #: mean KL divergence of the second model's distribution from the first's, in nats
    kl_largest: Distance  #: the largest of them


class LayerShare(Record):
    """One layer of a converted adapter."""

    layer: str  #: its name in the base model
    size: Annotated[int, Field(gt=0)]  #: the smaller of its two dimensions; a LoRA of this rank is exact
    norm: Distance  #: ‖ΔW‖, the Frobenius norm of what the adapter changes
    left_out: Distance  #: ‖ΔW - B·A‖ of the LoRA in the folder, as a share of ‖ΔW‖
    least: Distance  #: lower bound on the same for any LoRA of this rank, with a chance of 1e-6 to fail


class RankTried(Record):
    """A rank that ``--rank auto`` tried."""

    rank: Annotated[int, Field(gt=0)]  #: the rank
    left_out: Distance  #: share of ‖ΔW‖ left out, over all layers
    kl: Distance  #: mean KL divergence of the conversion from the adapter on the check rows


class TaskAccuracy(Record):
    """The accuracy of an adapter and of its conversion on the same rows of a task."""

    task: str  #: name of the task
    format: Format  #: how a row becomes a prompt and its candidate answers
    metric: Metric  #: which of the two accuracies is reported
    rows: Annotated[int, Field(gt=0)]  #: rows that were evaluated
    source: Share  #: accuracy of the adapter
    source_interval: tuple[Share, Share]  #: its Wilson 95 % interval
    converted: Share  #: accuracy of the conversion
    converted_interval: tuple[Share, Share]  #: its Wilson 95 % interval
    only_source: Count  #: rows that count more for the adapter
    only_converted: Count  #: rows that count more for the conversion
    p_value: Share  #: two-sided p of McNemar's exact test; with tied candidates, of the exact sign-flip test


class ConvertRecord(Record):
    """The whole convert.json, and what ``doratune convert --json`` prints."""

    source: str  #: the run or adapter, as it was named
    method: Literal["lora", "dora"]  #: the adapter's method
    base: str  #: name of the base model
    weights_checksum: str | None  #: checksum of the adapter that was converted
    rank: Annotated[int, Field(gt=0)] | None  #: rank of the LoRA; None for an exact conversion
    source_rank: Annotated[int, Field(gt=0)]  #: the largest rank of a layer of the adapter
    left_out: Distance  #: share of ‖ΔW‖ left out, over all layers; 0 for an exact conversion
    least: Distance  #: lower bound on the same for any LoRA of this rank
    layers: list[LayerShare]  #: each layer; empty for an exact conversion
    tried: list[RankTried]  #: the ranks that ``--rank auto`` tried, ascending
    max_kl: Distance | None  #: the largest KL that ``--rank auto`` accepts
    check: LogitCheck  #: the conversion's log-probabilities compared with the adapter's
    tasks: list[TaskAccuracy]  #: accuracies on the tasks of ``--task``
    notes: list[str]  #: what the folder holds besides LoRA, and what was filled up
    environment: Environment  #: the machine and the software
