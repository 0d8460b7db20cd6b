"""What the commands after training print with --json and leave in their folders."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

from pydantic import Field

from doratune.records.base import Record
from doratune.records.run import Count, Environment, Format, Metric, ModelRecord, Seconds, Share

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


class RoundingRecord(Record):
    """What rounding to the written type took from an update: ‖round(W') - W'‖ / ‖W' - W‖."""

    overall: Distance  #: of all changed weights together
    worst: Distance  #: of the weight that lost most
    parameter: str  #: that weight


class MergeRecord(Record):
    """The whole merge.json: what was merged, and how far the result is from base and adapter."""

    kind: ClassVar[str] = "doratune.merge"
    version: ClassVar[int] = 1

    schema_name: Literal["doratune.merge"] = Field(default="doratune.merge", alias="schema")  #: kind of file
    schema_version: Literal[1] = 1  #: raised when a reader of the old version could not read the new
    target: str  #: the run or adapter, as the user named it
    base: ModelRecord  #: the base model
    other_base: bool  #: whether it is another than was trained on
    dequantised: bool  #: whether the base's weights are those of 4 bits, dequantised
    weights_checksum: str  #: of the adapter, see ``records.weights``
    layers: dict[str, Count]  #: merged layers, by method and kind, such as "DoRA linear"
    replaced: list[str]  #: parameters that the adapter brought whole
    untied: list[str]  #: parameters that the base shares with another, and the merged model does not
    dtype: str  #: the type of the changed weights
    files: dict[str, Count]  #: the files of the weights, with their bytes
    rounding: RoundingRecord | None  #: None if no weight was changed
    base_difference: LogitCheck | None  #: adapter on the base in full precision, and on it dequantised
    check: LogitCheck  #: base with adapter, and the folder read back, both computed in float32
    noise: LogitCheck  #: the folder's model, and the same with its weights moved by a rounding
    allowed: Distance  #: the largest mean difference in ``check`` that rounding explains
    usable: bool  #: whether ``check`` does not exceed it
    output: str  #: the folder
    seconds: Seconds  #: wall time
    environment: Environment  #: where it was merged


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
    """The whole convert.json: what was converted into what, what that leaves out, and what it costs."""

    kind: ClassVar[str] = "doratune.convert"
    version: ClassVar[int] = 1

    schema_name: Literal["doratune.convert"] = Field(default="doratune.convert", alias="schema")  #: kind
    schema_version: Literal[1] = 1  #: raised when a reader of the old version could not read the new
    source: str  #: the run or adapter, as it was named
    method: Literal["lora", "dora"]  #: the adapter's method
    base: ModelRecord  #: the base model
    weights_checksum: str  #: checksum of the adapter that was converted
    rank: Annotated[int, Field(gt=0)] | None  #: rank of the LoRA; None for an exact conversion
    source_rank: Annotated[int, Field(gt=0)]  #: the largest rank of a layer of the adapter
    left_out: Distance  #: share of ‖ΔW‖ left out, over all layers; 0 for an exact conversion
    least: Distance  #: lower bound on the same for any LoRA of this rank
    layers: list[LayerShare]  #: each layer; empty for an exact conversion
    tried: list[RankTried]  #: the ranks that ``--rank auto`` tried, ascending
    max_kl: Distance | None  #: the largest KL that ``--rank auto`` accepts
    check: LogitCheck  #: the adapter, and the conversion read back, both computed in float32
    noise: LogitCheck | None  #: of an exact one: it, and the same with its weights moved by a rounding
    tasks: list[TaskAccuracy]  #: accuracies on the tasks of ``--task``
    notes: list[str]  #: what the folder holds besides LoRA, and what was filled up
    environment: Environment  #: the machine and the software
