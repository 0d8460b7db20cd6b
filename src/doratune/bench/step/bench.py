"""``doratune bench step``: whole optimizer steps, all providers in turn, each in a separate process."""

from __future__ import annotations

import gc
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial

import torch

from doratune.bench.cases import in_dtype
from doratune.bench.config import StepBenchConfig
from doratune.bench.figures import BASELINES, WARMUP_ROUNDS, divide, judge, summarise, time_ratios
from doratune.bench.machine import describe_machine, matmul_tflops, torch_threads, warn_of_slow_products
from doratune.bench.output import require_free
from doratune.bench.step.cases import read_steps
from doratune.bench.step.child import train
from doratune.bench.step.gate import FIRST_LIMITS, LIMITS, check_losses
from doratune.bench.step.providers import FLOORS, STEP_PROVIDERS, StepProvider, StepReport, Trainee
from doratune.bench.step.turns import Alone, workers
from doratune.errors import DoratuneError, InputError
from doratune.models.builtin import BUILTIN, resolve_builtin
from doratune.models.names import refuse_unknown_model
from doratune.records.bench import (
    Quantity,
    Ratio,
    StepBenchRecord,
    StepCase,
    StepCaseResult,
    StepProviderResult,
    Target,
    Unavailable,
)
from doratune.records.files import write_json_atomic
from doratune.training.config import LLAMA_TARGETS

logger = logging.getLogger(__name__)

FLOOR = "floor"
"""The baseline's name for the faster of the frozen models."""
REHEARSED_ROWS = 4
REHEARSED_STEPS = 3


def bench_step(config: StepBenchConfig, *, overwrite: bool = False) -> StepBenchRecord:
    """Measure optimizer steps, and write the record if the configuration names a file.

    Args:
        config: Which cases and how.
        overwrite: Replace the file.

    Raises:
        InputError: A case or the model is unknown, or the file exists.
        GateError: Two providers that should train alike have different losses.
        DoratuneError: A provider's process died.
    """
    file = read_steps()
    apart = config.step_set == "gpu"
    entries = [in_dtype(entry, config.dtype) for entry in file.select(config.step_set, config.case)]
    if apart and not torch.cuda.is_available():
        raise InputError("there is no GPU that torch can use", where="--set", got="gpu")
    if config.output is not None:
        require_free(config.output, overwrite=overwrite)
    refuse_unknown_model(config.model)  # once, not in each provider's process
    if config.model in BUILTIN:
        resolve_builtin(config.model)  # here, so that no two processes create it at once
    started = datetime.now(UTC)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    warn_of_slow_products([entry.dtype for entry in entries], device)
    with torch_threads(config.threads):
        results = [measure_steps(entry.case(), file.targets(entry), config, apart=apart) for entry in entries]
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
    """Train a case with all providers.

    Args:
        case: What is trained.
        targets: The ratios to reach.
        config: Which model, and how many rounds.
        apart: One provider after the other, for a model of which a GPU holds only one copy. Otherwise they
            take turns, after a short run in float32 that compares losses.

    Raises:
        GateError: Two providers that should train alike have different losses.
        DoratuneError: A provider's process failed.
    """
    steps = WARMUP_ROUNDS + config.rounds
    if apart:
        training = _train_apart(case, config.model, steps)
    else:
        logger.info("%s: %d steps in float32 on a few rows, to compare losses", case.name, REHEARSED_STEPS)
        small = {"rows": min(case.rows, REHEARSED_ROWS), "dtype": "float32"}
        train_in_turn(case.model_copy(update=small), config.model, REHEARSED_STEPS)
        logger.info("%s: timing %d steps of %d providers", case.name, config.rounds, len(STEP_PROVIDERS))
        training = train_in_turn(case, config.model, steps)
    times = {name: all_rounds[WARMUP_ROUNDS:] for name, all_rounds in training.milliseconds.items()}
    floors = [floor.name for floor in FLOORS if floor.name in times]
    floor = min(floors, key=lambda name: summarise(times[name]).median)
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
        unavailable=training.unavailable,
        verdicts=judge(targets, results),
    )


@dataclass(frozen=True)
class Training:
    """Times and losses of each step and the reports, by provider, and the providers that could not run."""

    milliseconds: dict[str, list[float]]
    losses: dict[str, list[float]]
    reports: dict[str, StepReport]
    unavailable: list[Unavailable]


def train_in_turn(
    case: StepCase, model: str, steps: int, providers: Sequence[StepProvider] = STEP_PROVIDERS
) -> Training:
    """Train a case with several providers in turn, and compare their losses after each round.

    Args:
        case: What is trained.
        model: The base model.
        steps: Steps of each provider, all of them timed.
        providers: The providers.

    Raises:
        GateError: Two providers that should train alike have different losses.
        DoratuneError: A provider's process failed.
    """
    trainees = _trainees(case, model, steps, providers)
    milliseconds: dict[str, list[float]] = {name: [] for name in trainees}
    losses: dict[str, list[float]] = {name: [] for name in trainees}
    with workers({name: partial(train, one) for name, one in trainees.items()}) as running:
        for number in range(steps):
            for name, step in running.round(number).items():
                milliseconds[name].append(step.milliseconds)
                losses[name].append(step.outcome)
            check_losses(losses, case.dtype)
        return Training(milliseconds, losses, running.finish(), [])


def _train_apart(case: StepCase, model: str, steps: int) -> Training:
    """Train a case with one provider after the other, in this process; compare their losses at the end."""
    training = Training({}, {}, {}, [])
    for name, trainee in _trainees(case, model, steps, STEP_PROVIDERS).items():
        gc.collect()  # frees the previous model
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
        turns = Alone(steps)
        try:
            training.reports[name] = train(trainee, turns)
        except torch.OutOfMemoryError:
            logger.info("%s: out of memory", name)
            training.unavailable.append(Unavailable(provider=name, reason="out of GPU memory"))
            continue
        training.milliseconds[name] = [step.milliseconds for step in turns.steps]
        training.losses[name] = [step.outcome for step in turns.steps]
        logger.info("%s: %.0f ms a step", name, training.milliseconds[name][-1])
    if not any(floor.name in training.losses for floor in FLOORS):
        raise DoratuneError(
            "the frozen model alone does not fit into the GPU's memory",
            where=case.name,
            fix="choose a smaller --model, or the case with activation checkpointing",
        )
    check_losses(training.losses, case.dtype)
    return training


def _trainees(
    case: StepCase, model: str, steps: int, providers: Sequence[StepProvider]
) -> dict[str, Trainee]:
    threads = torch.get_num_threads()
    return {
        # One step more than will run, so that no trainer does its final work within a timed step.
        provider.name: Trainee(provider, case, model, steps + 1, threads)
        for provider in providers
    }


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
