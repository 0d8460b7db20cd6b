"""``doratune bench op``: single layers. Each provider is checked, then all are timed together."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime

import torch

from doratune.bench.cases import in_dtype
from doratune.bench.config import OpBenchConfig
from doratune.bench.figures import BASELINES, WARMUP_ROUNDS, divide, judge, summarise, time_ratios
from doratune.bench.machine import describe_machine, torch_threads, warn_of_slow_products
from doratune.bench.op.cases import read_cases, select_cases
from doratune.bench.op.gate import LIMITS, check, truth
from doratune.bench.op.layer_data import LayerData, draw_layer
from doratune.bench.op.memory import cpu_peak, cuda_peak, saved_bytes
from doratune.bench.op.providers import PROVIDERS, Adapter, Provider, Subject, UnavailableError, build
from doratune.bench.op.timing import gpu_rounds, time_rounds
from doratune.bench.output import require_free
from doratune.errors import InputError
from doratune.records.bench import (
    BenchRecord,
    Case,
    CaseResult,
    CaseSet,
    PeakMemory,
    ProviderResult,
    Quantity,
    Ratio,
    Target,
    Unavailable,
)
from doratune.records.files import write_json_atomic

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Memory:
    """The measurements of ``--memory``, by provider.

    Attributes:
        saved: Bytes saved for backward.
        peak: The peak over a few calls; a provider is missing where it cannot be measured.
    """

    saved: dict[str, int]
    peak: dict[str, PeakMemory]


def bench_op(config: OpBenchConfig, *, overwrite: bool = False) -> BenchRecord:
    """Measure layers, and write the record if the configuration names a file.

    Args:
        config: Which layers and how.
        overwrite: Replace the file.

    Raises:
        InputError: A case is unknown, the set is for a device this machine lacks, or the file exists. Nothing
            has been measured by then.
        GateError: A provider disagrees with the reference.
    """
    case_set: CaseSet = config.case_set or ("gpu" if torch.cuda.is_available() else "cpu")
    file = read_cases()
    cases = select_cases(file, case_set, config.case)
    _require_device(case_set)
    if config.output is not None:
        require_free(config.output, overwrite=overwrite)
    device = torch.device("cuda" if case_set == "gpu" else "cpu")
    started = datetime.now(UTC)
    pairs = [(in_dtype(case, config.dtype), file.targets(case)) for case in cases]
    chosen = {case.name: (case, targets) for case, targets in pairs}  # with --dtype two cases may be the same
    warn_of_slow_products([case.dtype for case, _ in pairs], device)
    with torch_threads(config.threads):
        results = [measure_case(case, targets, device, config) for case, targets in chosen.values()]
        machine = describe_machine(device)
    record = BenchRecord(
        what="op",
        case_set=case_set,
        warmup_rounds=WARMUP_ROUNDS,
        results=results,
        machine=machine,
        started=started,
        finished=datetime.now(UTC),
    )
    if config.output is not None:
        write_json_atomic(config.output, record.to_dict())
    return record


def measure_case(
    case: Case,
    targets: list[Target],
    device: torch.device,
    config: OpBenchConfig,
    providers: Sequence[Provider] = PROVIDERS,
) -> CaseResult:
    """Check every provider on one case, then measure time and memory of all.

    Raises:
        GateError: A provider disagrees with the reference; none is timed.
    """
    data = draw_layer(case, device)
    subjects, unavailable = _build_all(providers, case, data)
    errors = _check_all(subjects, data, LIMITS[case.dtype])
    logger.info("%s: %d providers checked, timing %d rounds", case.name, len(subjects), config.rounds)
    times = time_rounds(subjects, data, config.rounds) if subjects else {}
    gpu = gpu_rounds(subjects, data, config.rounds) if data.x.is_cuda else {}
    memory = _weigh(subjects, case, data) if config.memory else Memory({}, {})
    results = [
        ProviderResult(
            provider=name,
            adapter_dtype=subject.adapter_dtype,
            errors=errors[name],
            milliseconds=summarise(times[name]),
            gpu=summarise(gpu[name]) if name in gpu else None,
            saved_bytes=memory.saved.get(name),
            peak=memory.peak.get(name),
            ratios=_ratios(name, times, gpu, memory),
        )
        for name, subject in ((subject.provider.name, subject) for subject in subjects)
    ]
    return CaseResult(
        case=case,
        error_limit=LIMITS[case.dtype],
        providers=results,
        unavailable=unavailable,
        verdicts=judge(targets, results),
    )


def _build_all(
    providers: Sequence[Provider], case: Case, data: LayerData
) -> tuple[list[Subject], list[Unavailable]]:
    subjects, unavailable = [], []
    for provider in providers:
        try:
            subjects.append(build(provider, case, data))
        except UnavailableError as error:
            unavailable.append(Unavailable(provider=provider.name, reason=error.what))
    return subjects, unavailable


def _check_all(subjects: list[Subject], data: LayerData, limit: float) -> dict[str, dict[str, float]]:
    """The errors of each provider; the reference is computed once for each kind of adapter."""
    errors = {}
    kinds: list[Adapter] = [subject.provider.adapter for subject in subjects]
    for kind in dict.fromkeys(kinds):
        alike = [subject for subject in subjects if subject.provider.adapter == kind]
        expected = truth(kind, data, alike[0].base_weight)
        for subject in alike:
            errors[subject.provider.name] = check(subject, data, expected, limit=limit)
    return errors


def _weigh(subjects: list[Subject], case: Case, data: LayerData) -> Memory:
    saved, peaks = {}, {}
    for subject in subjects:
        name = subject.provider.name
        subject.prepare(data)
        saved[name] = saved_bytes(subject.layer, data.x)
        if data.x.is_cuda:
            peaks[name] = cuda_peak(subject, data)
        else:
            peaks[name] = cpu_peak(subject.provider, case, torch.get_num_threads())
    return Memory(saved, {name: peak for name, peak in peaks.items() if peak is not None})


def _ratios(
    name: str, times: dict[str, list[float]], gpu: dict[str, list[float]], memory: Memory
) -> dict[Quantity, dict[str, Ratio]]:
    growth = {provider: peak.growth_bytes for provider, peak in memory.peak.items()}
    return {
        "time": time_ratios(times, name, BASELINES),
        **({"gpu": time_ratios(gpu, name, BASELINES)} if name in gpu else {}),
        "saved": divide(memory.saved, name, BASELINES),
        "peak": divide(growth, name, BASELINES),
    }


def _require_device(case_set: CaseSet) -> None:
    if case_set == "gpu" and not torch.cuda.is_available():
        raise InputError("there is no GPU that torch can use", where="--set", got="gpu", fix="use --set cpu")
