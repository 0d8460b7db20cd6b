"""``doratune bench step``: whole optimizer steps, all providers in turn, each in a process of its own."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime

import torch

from doratune.bench.config import StepBenchConfig
from doratune.bench.machine import describe_machine, matmul_tflops, torch_threads
from doratune.bench.output import require_free
from doratune.bench.providers import BASELINES
from doratune.bench.ratios import divide, judge
from doratune.bench.step_cases import read_steps
from doratune.bench.step_child import StepReport, Trainee
from doratune.bench.step_gate import FIRST_LIMITS, LIMITS, check_losses
from doratune.bench.step_providers import FLOORS, STEP_PROVIDERS
from doratune.bench.timing import WARMUP_ROUNDS, summarise, time_ratios
from doratune.bench.turns import players
from doratune.models.builtin import BUILTIN, resolve_builtin
from doratune.records.bench import (
    Quantity,
    Ratio,
    StepBenchRecord,
    StepCase,
    StepCaseResult,
    StepProviderResult,
    Target,
)
from doratune.records.files import write_json_atomic
from doratune.training.config import LLAMA_TARGETS

logger = logging.getLogger(__name__)

FLOOR = "floor"
"""The name under which the faster frozen model is divided by."""
REHEARSED_ROWS = 4
REHEARSED_TOKENS = 64
REHEARSED_STEPS = 3


def bench_step(config: StepBenchConfig, *, overwrite: bool = False) -> StepBenchRecord:
    """Measure optimizer steps, and write the record if the configuration names a file.

    Args:
        config: Which cases and how.
        overwrite: Replace the file.

    Raises:
        InputError: A case or the model is unknown, or the file exists.
        GateError: Two providers that train the same have different losses.
        DoratuneError: A provider's process died.
    """
    file = read_steps()
    apart = config.step_set == "gpu"
    entries = file.select(config.step_set, config.case)
    if config.output is not None:
        require_free(config.output, overwrite=overwrite)
    if config.model in BUILTIN:
        resolve_builtin(config.model)  # here, so that no two processes make it at once
    started = datetime.now(UTC)
    with torch_threads(config.threads):
        results = [measure_steps(entry.case(), file.targets(entry), config, apart=apart) for entry in entries]
        device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        machine = describe_machine(device)
        tflops = matmul_tflops(device) if apart else None
    record = StepBenchRecord(
        what="step",
        model=config.model,
        adapted=list(LLAMA_TARGETS),
        interleaved=not apart,
        matmul_tflops=tflops,
        warmup_rounds=WARMUP_ROUNDS,
        results=results,
        machine=machine,
        started=started,
        finished=datetime.now(UTC),
    )
    if config.output is not None:
        write_json_atomic(config.output, record.to_dict())
    return record


def measure_steps(
    case: StepCase, targets: list[Target], config: StepBenchConfig, *, apart: bool = False
) -> StepCaseResult:
    """Rehearse a case in float32, then train it with all providers, in turn or one after the other.

    Raises:
        GateError: Two providers that train the same have different losses.
        DoratuneError: A provider's process failed.
    """
    logger.info("%s: %d steps in float32 on a few rows, to compare losses", case.name, REHEARSED_STEPS)
    rows, tokens = min(case.rows, REHEARSED_ROWS), min(case.tokens, REHEARSED_TOKENS)
    small = case.model_copy(update={"rows": rows, "tokens": tokens, "dtype": "float32"})
    _train(small, config.model, REHEARSED_STEPS, apart=apart)
    logger.info("%s: timing %d steps of %d providers", case.name, config.rounds, len(STEP_PROVIDERS))
    training = _train(case, config.model, WARMUP_ROUNDS + config.rounds, apart=apart)
    times = {name: all_rounds[WARMUP_ROUNDS:] for name, all_rounds in training.milliseconds.items()}
    floor = min((floor.name for floor in FLOORS), key=lambda name: summarise(times[name]).median)
    results = [
        StepProviderResult(
            provider=name,
            attention=report.attention,
            trainable=report.trainable,
            losses=training.losses[name],
            milliseconds=summarise(times[name]),
            before_bytes=report.before_bytes,
            peak_bytes=report.peak_bytes,
            ratios=_ratios(name, times, training.reports, floor),
        )
        for name, report in training.reports.items()
    ]
    return StepCaseResult(
        case=case,
        floor=floor,
        first_loss_limit=FIRST_LIMITS[case.dtype],
        loss_limit=LIMITS[case.dtype],
        providers=results,
        verdicts=judge(targets, results),
    )


@dataclass(frozen=True)
class _Training:
    """What all providers did, by their names; times and losses of each step."""

    milliseconds: dict[str, list[float]]
    losses: dict[str, list[float]]
    reports: dict[str, StepReport]


def _train(case: StepCase, model: str, steps: int, *, apart: bool) -> _Training:
    """Train a case with all providers, and compare their losses: after each round where they take turns."""
    threads = torch.get_num_threads()
    works = {
        # One step more than will come, so that no trainer does what it does at its end within a step.
        provider.name: Trainee(provider, case, model, steps + 1, threads, alone=apart)
        for provider in STEP_PROVIDERS
    }
    milliseconds: dict[str, list[float]] = {name: [] for name in works}
    losses: dict[str, list[float]] = {name: [] for name in works}
    with players(works) as game:
        if apart:
            reports = {}
            for name, (_, *moves), report in game.play_apart(1 + steps):  # the first makes the model
                milliseconds[name] = [move.milliseconds for move in moves]
                losses[name] = [move.outcome for move in moves]
                reports[name] = report
            check_losses(losses, case.dtype)
            return _Training(milliseconds, losses, reports)
        for number in range(steps):
            for name, move in game.play(number).items():
                milliseconds[name].append(move.milliseconds)
                losses[name].append(move.outcome)
            check_losses(losses, case.dtype)
        return _Training(milliseconds, losses, game.finish())


def _ratios(
    name: str, times: Mapping[str, list[float]], reports: Mapping[str, StepReport], floor: str
) -> dict[Quantity, dict[str, Ratio]]:
    peak = {one: report.peak_bytes for one, report in reports.items()}
    growth = {
        one: max(0, report.peak_bytes - report.before_bytes)
        for one, report in reports.items()
        if report.before_bytes is not None
    }
    return {
        "time": time_ratios({**times, FLOOR: times[floor]}, name, BASELINES),
        "peak": divide({**peak, FLOOR: peak[floor]}, name, BASELINES),
        "growth": divide({**growth, FLOOR: growth[floor]} if growth else {}, name, BASELINES),
    }
