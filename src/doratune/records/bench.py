"""The file of a bench, schema version 1: the cost of layers or training steps, compared, and the machine."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

from pydantic import AwareDatetime, Field

from doratune.records.base import Record
from doratune.records.run import Count, Environment

DType = Literal["bfloat16", "float32"]
Base = Literal["dense", "bnb-4bit"]
CaseSet = Literal["cpu", "gpu"]
Quantity = Literal["time", "cpu", "gpu", "saved", "peak", "growth"]
StepSet = Literal["headline", "growth", "gpu", "all"]
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
    """A target for a provider: the ratio of its figure to another provider's."""

    provider: str  #: the provider it is for
    quantity: Quantity  #: the figure; see ``ProviderResult`` and ``StepProviderResult``
    against: str  #: the provider it is divided by
    at_most: Ratio  #: the highest ratio that meets it


class Verdict(Target):
    """A target and what was measured."""

    measured: Ratio | None  #: the ratio, or None if one of the two figures is missing
    met: bool | None  #: measured <= at_most; None if ``measured`` is None


class Timing(Record):
    """Wall time of one forward and backward pass, or of one optimizer step."""

    median: Milliseconds  #: of ``rounds``
    minimum: Milliseconds  #: of ``rounds``
    lower_quartile: Milliseconds  #: of ``rounds``
    upper_quartile: Milliseconds  #: of ``rounds``
    count: Size  #: number of rounds, without those for warming up
    rounds: list[Milliseconds]  #: each round; the i-th of every provider were taken one after the other


class PeakMemory(Record):
    """The most memory that calls of a layer added to the memory held before the first call."""

    before_bytes: Count  #: held before the first call: resident on a CPU, allocated on a GPU
    growth_bytes: Count  #: peak during the calls, above ``before_bytes``


class ProviderResult(Record):
    """One provider on one case."""

    provider: str  #: its name
    adapter_dtype: DType | None  #: dtype of A and B, None without an adapter
    errors: dict[str, Ratio]  #: relative Frobenius error of y and of each gradient, before timing
    milliseconds: Timing  #: one call: forward and backward to x and to the adapter
    gpu: Timing | None = None
    #: on a GPU, the same call queued while the GPU was busy, without the host's share; None on a CPU, or
    #: where the call waits for the GPU
    saved_bytes: Count | None  #: kept for backward beyond the layer's own parameters; None if not measured
    peak: PeakMemory | None  #: None if not measured
    ratios: dict[Quantity, dict[str, Ratio]]
    #: by quantity and by provider divided by. "time" is the median over rounds of the ratio within a round,
    #: "gpu" likewise of ``gpu``, "saved" the ratio of ``saved_bytes``, "peak" that of
    #: ``peak.growth_bytes``. Ratios to zero are left out.


class Unavailable(Record):
    """A provider that cannot run a case."""

    provider: str  #: its name
    reason: str  #: why not


class CaseResult(Record):
    """One case with every provider."""

    case: Case  #: the layer and its input
    error_limit: Ratio  #: the highest value allowed in ``errors``
    providers: list[ProviderResult]  #: the providers that ran
    unavailable: list[Unavailable]  #: the providers that did not
    verdicts: list[Verdict]  #: the targets of the case


class Machine(Record):
    """The machine, as far as it affects speed."""

    environment: Environment  #: the machine and the software
    device: str  #: "cpu" or "cuda"
    threads: Size  #: torch's threads inside an operation
    cpu_features: dict[str, bool]  #: vector and matrix instructions that torch finds
    allocator: dict[str, str]  #: environment variables that affect memory allocation


class BenchFile(Record):
    """The common part of all benches' files."""

    kind: ClassVar[str] = "doratune.bench"
    version: ClassVar[int] = 1

    schema_name: Literal["doratune.bench"] = Field(default="doratune.bench", alias="schema")  #: file kind
    schema_version: Literal[1] = 1  #: raised when a reader of the old version could not read the new
    warmup_rounds: Count  #: rounds before those that count
    machine: Machine  #: where it was measured
    started: AwareDatetime  #: start, ISO 8601 with time zone
    finished: AwareDatetime  #: end, ISO 8601 with time zone


class BenchRecord(BenchFile):
    """The whole file of a bench of layers."""

    what: Literal["op"]  #: what was measured: "op" is single layers
    case_set: CaseSet  #: the set of cases
    results: list[CaseResult]  #: one entry per case


class StepCase(Record):
    """One optimizer step of fine-tuning: one batch of rows of equal length, an adapter without dropout."""

    name: str  #: unique among all cases
    rows: Size  #: rows in the batch
    tokens: Size  #: tokens in each row
    answer_tokens: Size  #: the last tokens of a row, which are its answer
    loss_on: Literal["answer", "prompt-and-answer"]  #: the tokens that are trained on
    rank: Size  #: rank r of the adapter
    alpha: Size  #: the adapter is scaled by alpha / rank
    dtype: DType  #: of the base model
    gradient_checkpointing: bool = False  #: whether activations are computed again in the backward pass


class StepProviderResult(Record):
    """One provider on one case."""

    provider: str  #: its name
    attention: str  #: the model's attention, by transformers' name
    trainable: Count  #: number of trained parameters
    losses: list[float]  #: of each step, the first with the adapter as it starts; rounds for warming up too
    milliseconds: Timing  #: one step: the training loop from one step's beginning to the next one's
    before_bytes: Count | None  #: memory of the process before the first step; None if not known
    peak_bytes: Count  #: the most memory of the process since it began
    ratios: dict[Quantity, dict[str, Ratio]]
    #: by quantity and by provider divided by. "time" is the median over rounds of the ratio within a round,
    #: "peak" that of ``peak_bytes``, "growth" that of ``peak_bytes`` minus ``before_bytes``.


class StepCaseResult(Record):
    """One case with every provider."""

    case: StepCase  #: what is trained
    floor: str  #: the provider called "floor": the faster of the frozen models, by median
    first_loss_limit: Ratio  #: largest relative difference allowed between all providers' first losses
    loss_limit: Ratio  #: the same at each step, between providers that train the same parameters
    providers: list[StepProviderResult]  #: those that ran
    unavailable: list[Unavailable] = Field(default=[])  #: those that did not, for lack of memory
    verdicts: list[Verdict]  #: the targets of the case


class StepBenchRecord(BenchFile):
    """The whole file of a bench of optimizer steps."""

    what: Literal["step"]  #: what was measured: "step" is whole optimizer steps
    model: str  #: the base model, as it was named
    adapted: list[str]  #: names of the adapted layers
    interleaved: bool = True  #: whether providers took turns step by step, or each ran alone
    matmul_tflops: float | None = None
    #: 10¹² operations a second in a product of two 8192 x 8192 bfloat16 matrices; None if not measured
    results: list[StepCaseResult]  #: one entry per case


class InferCase(Record):
    """One call of ``generate``: greedy, of a fixed number of tokens, after prompts of equal length."""

    name: str  #: unique among all cases
    batch: Size  #: prompts
    prompt_tokens: Size  #: tokens in each prompt
    new_tokens: Annotated[int, Field(ge=2)]  #: tokens written after each prompt
    rank: Size  #: rank r of the adapter
    alpha: Size  #: the adapter is scaled by alpha / rank
    dtype: DType  #: of the base model; adapters are in float32, as PEFT has them


class InferProviderResult(Record):
    """One provider on one case."""

    provider: str  #: its name
    error: Ratio | None
    #: relative error of all logits, ‖difference‖ / ‖logits‖, to stock PEFT's with the same adapter, both
    #: given PEFT's tokens; before timing; None for the base model and for stock PEFT itself
    same_tokens: Ratio | None  #: share of tokens for which both have the same largest logit; None likewise
    milliseconds: Timing  #: one call, from the prompts to the last token
    cpu: Timing  #: the same calls: time that the process spent on processors, all threads together
    tokens_per_second: Annotated[float, Field(ge=0)]  #: batch * new_tokens / median time
    adapter_bytes: Count  #: the adapter's parameters
    kept_bytes: Count  #: tensors that are kept from call to call beyond the model's parameters and buffers
    ratios: dict[Quantity, dict[str, Ratio]]
    #: by quantity and by provider divided by. "time" is the median over rounds of the ratio within a round,
    #: "cpu" likewise of ``cpu``, which other programs on the machine disturb less.


class InferCaseResult(Record):
    """One case with every provider."""

    case: InferCase  #: what is generated
    error_limit: Ratio  #: the highest value allowed in ``error``
    base_bytes: Count  #: the base model's parameters and buffers
    providers: list[InferProviderResult]  #: those that ran
    unavailable: list[Unavailable] = Field(default=[])  #: those that did not
    verdicts: list[Verdict]  #: the targets of the case


class InferBenchRecord(BenchFile):
    """The whole file of a bench of generation."""

    what: Literal["infer"]  #: what was measured: "infer" is generation
    model: str  #: the base model, as it was named
    adapted: list[str]  #: names of the adapted layers
    results: list[InferCaseResult]  #: one entry per case
