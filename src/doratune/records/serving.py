"""What the commands after training print with --json and leave in their folders."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from doratune.records.base import Record
from doratune.records.run import Count, Share

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


class GgufCheck(Record):
    """Whether a GGUF file is the base with the adapter, as transformers reads it."""

    weight: str  #: the parameter whose distance comes closest to what rounding can do, or exceeds it most
    weights_apart: Distance  #: its distance from the merged weight, relative to that weight's norm
    weights_limit: Distance  #: the most that rounding to its type can do
    logits: LogitCheck  #: the file compared with base plus adapter
    kl_limit: Distance  #: the largest mean KL divergence of a usable file
    usable: bool  #: whether both are within their limits


class ExportedGguf(Record):
    """A GGUF file with a base model and an adapter merged into it."""

    target: str  #: the run or adapter
    base: str  #: name of the base that the adapter was put on
    base_fingerprint: str | None  #: its weights' hash, as in a run's record
    adapter_checksum: str  #: of the adapter's weights
    base_gguf: str  #: name of the base's GGUF file
    base_gguf_sha256: str  #: its SHA-256
    base_difference: Distance  #: distance of its weights from the base's, relative to their norm
    base_difference_largest: Distance  #: the same of the tensor that is farthest
    output: str  #: the file
    bytes: Count  #: its size
    sha256: str  #: its SHA-256
    copied: dict[str, Count]  #: tensors copied byte for byte, by type
    computed: dict[str, Count]  #: tensors with the adapter merged into them, by type
    check: GgufCheck  #: how far the file is from base plus adapter
