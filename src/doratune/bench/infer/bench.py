"""``doratune bench infer``: calls of ``generate``, in turn, after the providers' logits were compared."""

from __future__ import annotations

import gc
import logging
import time
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime

import torch
from torch import Tensor, nn

from doratune.bench.cases import in_dtype
from doratune.bench.config import InferBenchConfig
from doratune.bench.figures import judge, summarise, time_ratios
from doratune.bench.infer.cases import read_infer
from doratune.bench.infer.gate import LIMITS, Agreement, check_logits
from doratune.bench.infer.providers import PROVIDERS, Writer, base_bytes, build
from doratune.bench.interleave import interleaved
from doratune.bench.machine import describe_machine, torch_threads, warn_of_slow_products
from doratune.bench.output import require_free
from doratune.models.load import load_model
from doratune.models.names import refuse_unknown_model
from doratune.records.bench import (
    InferBenchRecord,
    InferCase,
    InferCaseResult,
    InferProviderResult,
    Target,
)
from doratune.records.files import write_json_atomic
from doratune.training.config import LLAMA_TARGETS

logger = logging.getLogger(__name__)

WARMUP_ROUNDS = 0
"""Rounds before the timed ones: the comparison of logits has warmed up."""
FEW_TOKENS = 2
"""Enough new tokens to fill every cache."""
BASELINES = ("base", "peft-lora", "peft-dora", "doratune-lora")
"""The providers that the others' times are divided by."""


def bench_infer(config: InferBenchConfig, *, overwrite: bool = False) -> InferBenchRecord:
    """Measure generation, and write the record if the configuration names a file.

    Args:
        config: Which cases and how.
        overwrite: Replace the file.

    Raises:
        InputError: A case or the model is unknown, or the file exists. Nothing has been measured by then.
        GateError: Two providers with the same adapter have different logits.
    """
    file = read_infer()
    entries = [in_dtype(entry, config.dtype) for entry in file.select(config.case)]
    chosen = {entry.name: entry for entry in entries}  # with --dtype two cases may be the same
    if config.output is not None:
        require_free(config.output, overwrite=overwrite)
    refuse_unknown_model(config.model)
    started = datetime.now(UTC)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    warn_of_slow_products([entry.dtype for entry in chosen.values()], device)
    with torch_threads(config.threads):
        results = [measure_case(entry.case(), file.targets(entry), config) for entry in chosen.values()]
        machine = describe_machine(device)
    record = InferBenchRecord(
        what="infer",
        model=config.model,
        adapted=list(LLAMA_TARGETS),
        warmup_rounds=WARMUP_ROUNDS,
        results=results,
        machine=machine,
        started=started,
        finished=datetime.now(UTC),
    )
    if config.output is not None:
        write_json_atomic(config.output, record.to_dict())
    return record


def measure_case(case: InferCase, targets: Sequence[Target], config: InferBenchConfig) -> InferCaseResult:
    """Check every provider on one case, then time all of them.

    Raises:
        GateError: Two providers with the same adapter have different logits; none is timed.
    """
    base = load_model(config.model, dtype=case.dtype).model
    prompts = _draw_prompts(case, base.config.get_text_config().vocab_size).to(base.device)
    writers, kept = {}, {}
    for provider in PROVIDERS:
        writer = writers[provider.name] = build(provider, base, case, prompts)
        before = _live_bytes()
        writer.generate(max_new_tokens=FEW_TOKENS, min_new_tokens=FEW_TOKENS)
        kept[provider.name] = max(0, _live_bytes() - before)
    agreements = check_logits(writers, case.dtype)
    logger.info("%s: %d providers checked, timing %d rounds", case.name, len(writers), config.rounds)
    cpu: dict[str, list[float]] = {name: [] for name in writers}

    def time_call(name: str) -> float:
        cpu_start, start = time.process_time(), time.perf_counter()
        writers[name].generate()
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        elapsed = (time.perf_counter() - start) * 1e3
        cpu[name].append((time.process_time() - cpu_start) * 1e3)
        return elapsed

    times = interleaved(list(writers), time_call, config.rounds, warmup=WARMUP_ROUNDS)
    results = [
        _result(case, writer, times, cpu, kept[name], agreements.get(name))
        for name, writer in writers.items()
    ]
    return InferCaseResult(
        case=case,
        error_limit=LIMITS[case.dtype],
        base_bytes=base_bytes(base),
        providers=results,
        verdicts=judge(targets, results),
    )


def _result(
    case: InferCase,
    writer: Writer,
    times: Mapping[str, list[float]],
    cpu: Mapping[str, list[float]],
    kept: int,
    agreement: Agreement | None,
) -> InferProviderResult:
    name = writer.provider.name
    timing = summarise(times[name])
    return InferProviderResult(
        provider=name,
        error=None if agreement is None else agreement.error,
        same_tokens=None if agreement is None else agreement.same_tokens,
        milliseconds=timing,
        cpu=summarise(cpu[name]),
        tokens_per_second=case.batch * case.new_tokens / timing.median * 1e3,
        adapter_bytes=writer.adapter_bytes,
        kept_bytes=kept,
        ratios={"time": time_ratios(times, name, BASELINES), "cpu": time_ratios(cpu, name, BASELINES)},
    )


def _draw_prompts(case: InferCase, vocabulary: int) -> Tensor:
    """Prompts of random tokens from a fixed seed, (batch, prompt_tokens)."""
    generator = torch.Generator().manual_seed(0)
    return torch.randint(vocabulary, (case.batch, case.prompt_tokens), generator=generator)


def _live_bytes() -> int:
    """The size of all storages that a plain tensor in this process uses."""
    gc.collect()
    storages = {}
    for one in gc.get_objects():
        # By type: isinstance asks the object for its class, and some answer with a warning. Other
        # subclasses, such as the fake tensors that torch.compile leaves, may have no memory at all.
        if type(one) in (Tensor, nn.Parameter) and one.layout == torch.strided and not one.is_meta:
            storage = one.untyped_storage()
            storages[storage.data_ptr()] = storage.nbytes()
    return sum(storages.values())
