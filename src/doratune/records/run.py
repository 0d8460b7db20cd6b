"""record.json, schema version 1: what one run was, what it cost and what came out of it."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, ClassVar, Literal

from pydantic import AwareDatetime, Field

from doratune.records.base import FiniteOrNone, Record

Share = Annotated[float, Field(ge=0, le=1)]
Count = Annotated[int, Field(ge=0)]
Seconds = Annotated[float, Field(ge=0)]
Method = Literal["base", "lora", "dora", "full"]
Format = Literal["instruct", "continuation"]
Protocol = Literal["likelihood", "generate"]
Metric = Literal["accuracy", "accuracy_norm"]
ScoredWeights = Literal["base", "adapter", "full"]


class ConfigRecord(Record):
    """The settings of a base model's config.json, as transformers filled them in."""

    transformers: str  #: its version, which decides what settings there are
    settings: dict[str, Any]  #: those that can change what the model computes


class TokenizerRecord(Record):
    """What a base model's tokenizer does."""

    vocabulary: Count  #: how many tokens it has
    eos: int  #: the id that closes a training row
    ends: list[int]  #: the ids that end a generated answer; generation_config.json may add some
    prompts: dict[str, str]  #: ids of texts of ours, with the special tokens around them
    completions: dict[str, str]  #: ids of texts of ours, without


class ModelRecord(Record):
    """The base model, before any adapter."""

    name: str  #: the name the user gave, a built-in name or a hub id
    source: str  #: where the weights were taken from
    dtype: str  #: the type of the base weights, such as "float32"
    parameters: Count  #: number of parameters of the base model
    fingerprint: str | None = None  #: hash of its weights, see ``base_model``; None where it was not taken
    config: ConfigRecord | None = None  #: what it computes besides; None in records of older versions
    tokenizer: TokenizerRecord | None = None  #: what ids it computes on; None in records of older versions


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
    parts: dict[str, Count] | None = None  #: rows of each task of a mix, None where it is no mix
    definition: dict[str, Any] | None = None  #: what a task's own file said; None for a shipped task

    @property
    def asked(self) -> str:
        """What tells these rows, and how they are asked, from others: ``sha256`` where the task ships."""
        if self.definition is None:
            return self.sha256
        return hashlib.sha256(f"{self.sha256}\n{way_of_asking(self.definition)}".encode()).hexdigest()


def way_of_asking(definition: Mapping[str, Any] | None) -> str:
    """What of a task's definition decides its prompts and answers, as text; empty for a shipped task."""
    decides = {key: (definition or {}).get(key) for key in ("layout", "row")}
    return json.dumps(decides, sort_keys=True, separators=(",", ":")) if definition is not None else ""


def mixed(parts: Sequence[DataRecord]) -> DataRecord:
    """The record of rows that are mixed from several sources; of one source its own."""
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
    """One way in which a model's own forward pass was made cheaper."""

    name: str  #: such as "packing"
    taken: Count  #: modules that it took
    left: dict[str, Count]  #: modules left as they were, by the reason


class ChangeRecord(Record):
    """How far the trained parameters of one kind moved."""

    largest: Annotated[float, Field(ge=0)]  #: largest change of an element
    rms: Annotated[float, Field(ge=0)]  #: root mean square of the changes
    elements: Count  #: elements that were compared
    of: Count  #: elements of that kind


class TrainingRecord(Record):
    """What training took."""

    seconds: Seconds  #: wall time of the training loop
    steps: Count  #: optimiser steps
    epochs: Annotated[float, Field(ge=0)]  #: passes over the training rows
    tokens: Count  #: tokens that went through the model, without padding
    tokens_per_second: Annotated[float, Field(ge=0)]  #: tokens / seconds
    peak_memory_bytes: Count  #: highest memory in use: of the GPU if there is one, else of the process
    final_loss: FiniteOrNone  #: last training loss that was logged, None when it was not finite
    speedups: list[SpeedupRecord] | None = None  #: what was sped up; None in records of older versions
    skipped_steps: Count = 0  #: steps left out, as their loss or gradient was not finite
    changes: dict[str, ChangeRecord] | None = (
        None  #: since step 0: A, B, m, or W of full; None if not measured
    )
    weights_checksum: str | None = None  #: of what was saved, see ``records.weights``; None: older version


class ScoredRecord(Record):
    """What answered in an evaluation."""

    weights: ScoredWeights  #: the base model, an adapter on it, or a model that was fully fine-tuned
    merged: bool  #: whether the adapter was merged into the base; False where there is no adapter
    merge_difference: FiniteOrNone = None  #: largest one to the unmerged model's scores, where it was taken
    dtype: str  #: the type that the model computed in, such as "float32"
    weights_checksum: str | None = None  #: of an adapter or a full model; None: the base, or older version


class Evaluation(Record):
    """One task, evaluated in one format with one protocol."""

    task: str  #: name of the task
    sample: bool  #: True for a built-in sample, which is no benchmark
    format: Format  #: how a row becomes a prompt and its candidate answers
    protocol: Protocol  #: how the model's answer is taken
    metric: Metric  #: which of the two accuracies below is reported as ``accuracy``
    rows: Annotated[int, Field(gt=0)]  #: rows that were evaluated
    correct: Count  #: rows that were right by ``metric``, without those on which candidates tied
    tied: Count | None = None  #: rows whose best score several candidates share; None: generated, or older
    accuracy: Share  #: mean over the rows; one on which k tied, the right one among them, counts 1/k
    interval: tuple[Share, Share]  #: Wilson 95 % interval of ``accuracy``
    accuracy_raw: Share | None = None  #: by the likelihood of the whole answer; None under "generate"
    accuracy_norm: Share | None = None  #: by the likelihood per byte of the answer; None under "generate"
    unmatched: Count = 0  #: rows whose text held no answer (only under "generate")
    chance: Share  #: expected accuracy of a guess
    majority: Share  #: accuracy of always giving the most frequent answer
    seconds: Seconds  #: wall time of the evaluation
    predictions: str  #: path of the predictions, relative to the run directory
    data: DataRecord  #: the rows it was evaluated on
    limit: int | None = None  #: only the first so many rows, or None for all
    speedups: list[SpeedupRecord] | None = None  #: what was sped up; None in records of older versions
    scored: ScoredRecord | None = None  #: what answered; None in records of older versions
    other_base: ModelRecord | None = None  #: the base model, where it was not the one of the run


class Environment(Record):
    """The machine and the software."""

    doratune: str  #: version of doratune
    python: str  #: version of Python
    platform: str  #: operating system and architecture
    cpu: str  #: name of the processor
    cores: Count  #: cores that this process may use
    gpu: str | None = None  #: name of the GPU, or None
    packages: dict[str, str]  #: versions of the packages that matter
    git_commit: str | None = None  #: commit of the working tree, or None outside of one


class Divergence(Record):
    """The whole of diverged.json: a run whose training reached something that is not finite."""

    message: str  #: what training said
    seconds: Seconds  #: wall time that it took
    config: dict[str, Any]  #: the resolved configuration


class RunRecord(Record):
    """The whole of record.json."""

    kind: ClassVar[str] = "doratune.run"
    version: ClassVar[int] = 1

    schema_name: Literal["doratune.run"] = Field(default="doratune.run", alias="schema")  #: what file this is
    schema_version: Literal[1] = 1  #: raised when a reader of the old version could not read the new
    name: str  #: name of the run, such as "dora"
    method: Method  #: "base" means that nothing was trained
    config: dict[str, Any]  #: the resolved configuration
    model: ModelRecord  #: the base model
    parameters: ParameterCount  #: how much of it was trained; ``trainable`` is 0 for a base run
    data: list[DataRecord]  #: training data, empty for a base run
    seed: int  #: seed of initialisation, order and dropout
    training: TrainingRecord | None = None  #: None when nothing was trained
    evaluations: list[Evaluation]  #: one entry per task, format and protocol
    environment: Environment  #: where it ran
    started: AwareDatetime  #: start, ISO 8601 with time zone
    finished: AwareDatetime  #: end, ISO 8601 with time zone
