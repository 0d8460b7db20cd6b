"""A bench's file, schema version 1: what layers cost beside one another in time and memory, and where."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

from pydantic import AwareDatetime, Field

from doratune.records.base import Record
from doratune.records.run import Count, Environment

DType = Literal["bfloat16", "float32"]
Base = Literal["dense", "bnb-4bit"]
CaseSet = Literal["cpu", "gpu"]
Quantity = Literal["time", "saved", "peak"]
Size = Annotated[int, Field(gt=0)]
Milliseconds = Annotated[float, Field(ge=0)]
Ratio = Annotated[float, Field(ge=0)]


class Case(Record):
    """One layer and one input: a linear layer without bias, an adapter without dropout."""

    name: str  #: unique among all cases
    d_in: Size  #: features of the input
    d_out: Size  #: features of the output
    rank: Size  #: rank r of the adapter
    tokens: Size  #: rows of the input x, which is (tokens, d_in)
    dtype: DType  #: of the input, and of the base weight before any quantisation
    base: Base  #: "dense": torch's Linear; "bnb-4bit": bitsandbytes' Linear4bit, nf4


class Target(Record):
    """What a provider should reach: a ratio of its figure to another provider's."""

    provider: str  #: the provider it is for
    quantity: Quantity  #: the figure; see ``ProviderResult``
    against: str  #: the provider it is divided by
    at_most: Ratio  #: the highest ratio that meets it


class Verdict(Target):
    """A target and what was measured."""

    measured: Ratio | None  #: the ratio, or None where one of the two figures is missing
    met: bool | None  #: measured <= at_most, None where there is nothing to judge


class Timing(Record):
    """Wall time of one forward and backward pass."""

    median: Milliseconds  #: of ``rounds``
    minimum: Milliseconds  #: of ``rounds``
    lower_quartile: Milliseconds  #: of ``rounds``
    upper_quartile: Milliseconds  #: of ``rounds``
    count: Size  #: number of rounds, without those for warming up
    rounds: list[Milliseconds]  #: each round; the i-th of every provider were taken one after the other


class PeakMemory(Record):
    """The most memory that calls of a layer added to what was held before the first of them."""

    before_bytes: Count  #: held before the first call: resident on a CPU, allocated on a GPU
    growth_bytes: Count  #: highest point during the calls, above ``before_bytes``


class ProviderResult(Record):
    """One provider on one case."""

    provider: str  #: its name
    adapter_dtype: DType | None  #: dtype of A and B, None without an adapter
    errors: dict[str, Ratio]  #: relative Frobenius error of y and of each gradient, before timing
    milliseconds: Timing  #: one call: forward and backward to x and to the adapter
    saved_bytes: Count | None  #: kept for backward beyond the layer's own parameters; None if not measured
    peak: PeakMemory | None  #: None if not measured
    ratios: dict[Quantity, dict[str, Ratio]]
    #: by quantity and by provider divided by. "time" is the median over rounds of the ratio within a round,
    #: "saved" that of ``saved_bytes``, "peak" that of ``peak.growth_bytes``. One to nothing is left out.


class Unavailable(Record):
    """A provider that cannot run a case."""

    provider: str  #: its name
    reason: str  #: why not


class CaseResult(Record):
    """One case with every provider."""

    case: Case  #: the layer and its input
    error_limit: Ratio  #: the highest of ``errors`` that was let pass
    providers: list[ProviderResult]  #: those that ran
    unavailable: list[Unavailable]  #: those that did not
    verdicts: list[Verdict]  #: the targets of the case


class Machine(Record):
    """Where it was measured, in as far as it bears on speed."""

    environment: Environment  #: the machine and the software
    device: str  #: "cpu" or "cuda"
    threads: Size  #: torch's threads inside an operation
    cpu_features: dict[str, bool]  #: instructions for vectors and matrices, as torch finds them
    allocator: dict[str, str]  #: environment variables that steer memory allocation


class BenchRecord(Record):
    """The whole of a bench's file."""

    kind: ClassVar[str] = "doratune.bench"
    version: ClassVar[int] = 1

    schema_name: Literal["doratune.bench"] = Field(default="doratune.bench", alias="schema")  #: file kind
    schema_version: Literal[1] = 1  #: raised when a reader of the old version could not read the new
    what: Literal["op"]  #: what was measured: "op" is single layers
    case_set: CaseSet  #: the set of cases
    warmup_rounds: Count  #: rounds before those that count
    results: list[CaseResult]  #: one entry per case
    machine: Machine  #: where it was measured
    started: AwareDatetime  #: start, ISO 8601 with time zone
    finished: AwareDatetime  #: end, ISO 8601 with time zone
