"""record.json, schema version 1: one run's settings, cost and results."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, ClassVar, Literal

from pydantic import AwareDatetime, Field

from doratune.launch import Launcher
from doratune.methods.find import get_method, method_names
from doratune.methods.method import Method
from doratune.records.base import FiniteOrNone, Record

Share = Annotated[float, Field(ge=0, le=1)]
Count = Annotated[int, Field(ge=0)]
Seconds = Annotated[float, Field(ge=0)]
Format = Literal["instruct", "continuation"]
Protocol = Literal["likelihood", "generate"]
Metric = Literal["accuracy", "accuracy_norm"]
ScoredWeights = Literal["base", "adapter", "full"]


class ConfigRecord(Record):
    """The settings of a base model's config.json, as transformers filled them in."""

    transformers: str  #: its version, which determines the settings
    settings: dict[str, Any]  #: those that can change what the model computes


class TokenizerRecord(Record):
    """The behaviour of a base model's tokenizer."""

    vocabulary: Count  #: how many tokens it has
    eos: int  #: the id that ends a training row
    ends: list[int]  #: the ids that end a generated answer; generation_config.json may add some
    prompts: dict[str, str]  #: ids of doratune's test texts, with the special tokens around them
    completions: dict[str, str]  #: ids of doratune's test texts, without special tokens


class ModelRecord(Record):
    """The base model, before any adapter."""

    name: str  #: the name the user gave, a built-in name or a hub id
    source: str  #: where the weights came from
    dtype: str  #: the type of the base weights, such as "float32"
    parameters: Count  #: number of parameters of the base model
    fingerprint: str | None = None  #: hash of its weights, see ``base_model``; None if not computed
    config: ConfigRecord | None = None  #: its settings; None in records of older versions
    tokenizer: TokenizerRecord | None = None  #: its tokenizer; None in records of older versions


class ParameterCount(Record):
    """How much of the model was trained."""

    trainable: Count  #: parameters that receive gradients
    total: Count  #: parameters of the base model and its adapters together
    share: Share  #: trainable / total


class DataRecord(Record):
    """A file or data set, so that two runs can tell whether they saw the same rows."""

    task: str | None = None  #: the task it belongs to, or None for a plain file
    source: str  #: hub id, built-in name or file name
    split: str  #: "train", "validation" or "test"
    sha256: str  #: hash of the rows as they were read
    rows: Count  #: rows in the split before any limit
    parts: dict[str, Count] | None = None  #: rows of each task of a mix; None if it is not a mix
    definition: dict[str, Any] | None = None  #: content of a task's YAML file; None for a shipped task

    @property
    def asked(self) -> str:
        """Identifies these rows and how they are asked; equals ``sha256`` for a shipped task."""
        if self.definition is None:
            return self.sha256
        return hashlib.sha256(f"{self.sha256}\n{way_of_asking(self.definition)}".encode()).hexdigest()


def way_of_asking(definition: Mapping[str, Any] | None) -> str:
    """The part of a task's definition that determines prompts and answers; empty for a shipped task."""
    decides = {key: (definition or {}).get(key) for key in ("layout", "row")}
    return json.dumps(decides, sort_keys=True, separators=(",", ":")) if definition is not None else ""


def mixed(parts: Sequence[DataRecord]) -> DataRecord:
    """The record of rows mixed from several sources; a single source's record is returned as it is."""
    if len(parts) == 1:
        return parts[0]
    digest = hashlib.sha256("\n".join(part.asked for part in parts).encode()).hexdigest()
    return DataRecord(
        source=", ".join(dict.fromkeys(part.source for part in parts)),
        split=parts[0].split,
        sha256=digest,
        rows=sum(part.rows for part in parts),
        parts={part.task or part.source: part.rows for part in parts},
    )


class TrainingDataRecord(Record):
    """The whole of training_data.json: the rows that a checkpoint comes from."""

    data: list[DataRecord]  #: as in record.json


class SpeedupRecord(Record):
    """One speedup of a model's forward pass."""

    name: str  #: such as "packing"
    taken: Count  #: modules that it changed
    left: dict[str, Count]  #: modules left unchanged, by reason


class ChangeRecord(Record):
    """How far the trained parameters of one kind moved."""

    largest: Annotated[float, Field(ge=0)]  #: largest change of an element
    rms: Annotated[float, Field(ge=0)]  #: root mean square of the changes
    elements: Count  #: elements that were compared
    of: Count  #: all elements of that kind


class ProcessesRecord(Record):
    """The processes that trained together, and how they shared a batch."""

    launcher: Launcher  #: what started them
    processes: Annotated[int, Field(gt=0)]  #: how many there were
    sharing: Literal[
        "none", "ddp", "fsdp", "fsdp2", "deepspeed"
    ]  #: how they shared the model: ddp has it whole
    batch_size: Annotated[int, Field(gt=0)]  #: rows of an optimizer step, over all processes
    micro_batch_size: Annotated[int, Field(gt=0)]  #: rows of a forward pass of one process, on average
    accumulation: Annotated[int, Field(gt=0)]  #: forward passes of a process in an optimizer step


class LayersRecord(Record):
    """The layers with LoRA or DoRA, by what computed them in their first forward pass."""

    engine: Count  #: layers that the engine computed
    left: dict[str, Count]  #: layers that PEFT computed, by reason
    uncalled: Count  #: layers that were not called


class TrainingRecord(Record):
    """The cost and course of training."""

    seconds: Seconds  #: wall time of the training loop
    steps: Count  #: optimiser steps
    epochs: Annotated[float, Field(ge=0)]  #: passes over the training rows
    tokens: Count  #: tokens that the model processed, without padding
    tokens_per_second: Annotated[float, Field(ge=0)]  #: tokens / seconds
    peak_memory_bytes: Count  #: peak memory of a process: of its GPU if there is one; the largest of several
    cpu_seconds: Seconds | None = (
        None  #: processor time of the training loop, of the first process; None in records of older versions
    )
    weights_bytes: Count | None = None  #: size of the saved weights; None in records of older versions
    final_loss: FiniteOrNone  #: last logged training loss; None if it was not finite
    speedups: list[SpeedupRecord] | None = None  #: the speedups; None in records of older versions
    skipped_steps: Count = 0  #: steps skipped because their loss or gradient was not finite
    changes: dict[str, ChangeRecord] | None = (
        None  #: since step 0: A, B, m, or W of full; None if not measured
    )
    weights_checksum: str | None = None  #: of the saved weights, see ``records.weights``; None: older version
    processes: ProcessesRecord | None = None  #: how many trained; None in records of older versions
    layers: LayersRecord | None = None  #: what computed the adapted layers; None: engine not asked, or old


class ScoredRecord(Record):
    """The model in an evaluation."""

    weights: ScoredWeights  #: the base model, an adapter on it, or a fully fine-tuned model
    merged: bool  #: whether the adapter was merged into the base; False without an adapter
    merge_difference: FiniteOrNone = None  #: largest difference from the unmerged model's scores, if measured
    dtype: str  #: the type the model computed in, such as "float32"
    weights_checksum: str | None = None  #: of an adapter or a full model; None: the base, or older version


class RowMeasures(Record):
    """What a run's scores say beyond right and wrong.

    Probabilities are the softmax over a row's candidates of the log-likelihood of the whole answer.
    """

    nll: Annotated[
        float, Field(ge=0)
    ]  #: mean negative log-likelihood of the right answer among the candidates, in nats
    nll_per_byte: Annotated[
        float, Field(ge=0)
    ]  #: the same by the softmax of the log-likelihood per byte of the answer
    brier: Annotated[float, Field(ge=0, le=2)]  #: mean sum over candidates of (p - 1 if right, else p)²
    calibration_error: Share  #: mean distance of confidence and accuracy, over ten bins of equal width
    confidence: Share  #: mean probability of the most probable candidate


class Evaluation(Record):
    """One task, evaluated in one format with one protocol."""

    task: str  #: name of the task
    sample: bool  #: True for a built-in sample, which is not a benchmark
    format: Format  #: how a row becomes a prompt and its candidate answers
    protocol: Protocol  #: how the model's answer is obtained
    metric: Metric  #: which of the two accuracies below is reported as ``accuracy``
    rows: Annotated[int, Field(gt=0)]  #: rows that were evaluated
    correct: Count  #: rows that were right by ``metric``, without ties
    tied: Count | None = None  #: rows whose best score several candidates share; None: generated, or older
    accuracy: Share  #: mean over the rows; a tie of k candidates that includes the right one counts 1/k
    interval: tuple[Share, Share]  #: Wilson 95 % interval of ``accuracy``
    accuracy_raw: Share | None = None  #: by the likelihood of the whole answer; None under "generate"
    accuracy_norm: Share | None = None  #: by the likelihood per byte of the answer; None under "generate"
    measures: RowMeasures | None = None  #: None under "generate", and in records of older versions
    unmatched: Count = 0  #: rows whose text had no answer (only under "generate")
    chance: Share  #: expected accuracy of a guess
    majority: Share  #: accuracy of always giving the most frequent answer
    seconds: Seconds  #: wall time of the evaluation
    processes: Annotated[int, Field(gt=0)] = 1  #: processes that shared the rows
    predictions: str  #: path of the predictions, relative to the run directory
    data: DataRecord  #: the rows it was evaluated on
    limit: int | None = None  #: only this many rows, from the first on; None for all
    speedups: list[SpeedupRecord] | None = None  #: the speedups; None in records of older versions
    scored: ScoredRecord | None = None  #: the model; None in records of older versions
    other_base: ModelRecord | None = None  #: the base model, if it was not the run's


class TextPiece(Record):
    """A paragraph of the built-in text, read by itself."""

    tokens: Annotated[int, Field(gt=0)]  #: its tokens, each of them predicted
    bytes: Annotated[int, Field(gt=0)]  #: its UTF-8 bytes
    nll: Annotated[float, Field(ge=0)]  #: negative log-likelihood of all its tokens, in nats


class TextLoss(Record):
    """How well a model predicts the built-in English text; an adapter is kept apart from its base."""

    name: str  #: name of the text
    sha256: str  #: its hash
    pieces: Annotated[list[TextPiece], Field(min_length=1)]  #: its paragraphs
    nll_per_token: Annotated[float, Field(ge=0)]  #: over the whole text, in nats
    nll_per_byte: Annotated[float, Field(ge=0)]  #: the same, which models with other tokens share
    perplexity: FiniteOrNone  #: exp(nll_per_token); None if too large for a float
    tokens_per_second: Annotated[float, Field(ge=0)]  #: speed of the forward passes, one paragraph at a time
    scored: ScoredRecord  #: the model
    other_base: ModelRecord | None = None  #: the base model, if it was not the run's


class Environment(Record):
    """The machine and the software."""

    doratune: str  #: version of doratune
    python: str  #: version of Python
    platform: str  #: operating system and architecture
    cpu: str  #: name of the processor
    cores: Count  #: cores that this process may use
    gpu: str | None = None  #: name of the GPU, or None
    packages: dict[str, str]  #: versions of the packages that matter
    git_commit: str | None = None  #: commit of the working tree, or None without one


class Divergence(Record):
    """The whole diverged.json: a run that stopped at a loss, gradient or weight that is not finite."""

    message: str  #: the error message of training
    seconds: Seconds  #: wall time that it took
    config: dict[str, Any]  #: the resolved configuration


class RunRecord(Record):
    """The whole record.json."""

    kind: ClassVar[str] = "doratune.run"
    version: ClassVar[int] = 1

    schema_name: Literal["doratune.run"] = Field(default="doratune.run", alias="schema")  #: kind of file
    schema_version: Literal[1] = 1  #: raised when a reader of the old version could not read the new
    name: str  #: name of the run, such as "dora"
    method: Annotated[str, Field(min_length=1)]  #: its name; "base" means that nothing was trained
    definition: dict[str, Any] | None = None  #: an own method's YAML file; None for a shipped method
    adapter: dict[str, Any] | None = (
        None  #: what adapter_config.json says that it computes; None: no adapter, or older version
    )
    config: dict[str, Any]  #: the resolved configuration
    model: ModelRecord  #: the base model
    parameters: ParameterCount  #: how much of it was trained; ``trainable`` is 0 for a base run
    data: list[DataRecord]  #: training data, empty for a base run
    seed: int  #: seed of initialisation, order and dropout
    training: TrainingRecord | None = None  #: None when nothing was trained
    evaluations: list[Evaluation]  #: one entry per task, format and protocol
    text: TextLoss | None = None  #: the built-in text; None if it was not scored
    environment: Environment  #: where it ran
    started: AwareDatetime  #: start, ISO 8601 with time zone
    finished: AwareDatetime  #: end, ISO 8601 with time zone


def deciding(record: RunRecord) -> dict[str, Any]:
    """What decides the result of a run's own method, from its file; empty for a shipped method."""
    return Method.model_validate(record.definition).deciding if record.definition is not None else {}


def unused_settings(record: RunRecord) -> frozenset[str]:
    """The settings that a run's method has no use for.

    Those of an adapter that was trained elsewhere are not known; every one counts as used.
    """
    if record.definition is not None:
        return Method.model_validate(record.definition).unused
    return get_method(record.method).unused if record.method in method_names() else frozenset()
