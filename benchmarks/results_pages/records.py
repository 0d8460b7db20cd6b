"""The committed records, and what the pages ask of them."""

from __future__ import annotations

import json
from collections.abc import Iterable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from doratune.records.bench import (
    BenchRecord,
    CaseResult,
    InferBenchRecord,
    InferCaseResult,
    ProviderResult,
    Quantity,
    StepBenchRecord,
    StepCaseResult,
    StepProviderResult,
)
from doratune.records.run import Environment
from doratune.records.storage import read_analysis, read_study
from pipeline.record import PipelineBenchRecord

ROOT = Path(__file__).parents[2]
RECORDS, STUDIES = ROOT / "benchmarks" / "results", ROOT / "docs" / "results"

FLOAT32_EVALUATION = datetime(2026, 11, 28, tzinfo=UTC)
"""Since then an evaluation on a CPU computes in float32 whatever the type of the run."""

PROCESSORS = {
    "(family 25, model 1)": "AMD Zen 3",
    "(family 25, model 17)": "AMD Zen 4",
    "(family 26, model 2)": "AMD Zen 5",
    "(family 6, model 167)": "Intel Xeon with AMX",
    "(family 6, model 207)": "Intel Xeon with AMX",
}
"""By the end of the processor's name in a record. Virtual machines hide the rest of the name."""


def op(name: str) -> BenchRecord:
    """A record of single layers."""
    return BenchRecord.model_validate_json((RECORDS / f"op-{name}.json").read_bytes())


def step(name: str) -> StepBenchRecord:
    """A record of whole training steps."""
    return StepBenchRecord.model_validate_json((RECORDS / f"step-{name}.json").read_bytes())


def infer(name: str) -> InferBenchRecord:
    """A record of generation."""
    return InferBenchRecord.model_validate_json((RECORDS / f"infer-{name}.json").read_bytes())


def pipeline(name: str) -> PipelineBenchRecord:
    """A record of training and evaluation together."""
    return PipelineBenchRecord.model_validate_json((RECORDS / f"pipeline-{name}.json").read_bytes())


def script(name: str) -> Any:
    """The record of a benchmark that is a single script."""
    return json.loads((RECORDS / f"{name}.json").read_bytes())


def first_run(task: str) -> Any:
    """The comparison of the first run, written in a schema that today's version does not read."""
    return json.loads((STUDIES / "first-run" / task / "comparison.json").read_bytes())


def study(name: str) -> Any:
    """A study of SmolLM2-135M."""
    return read_study(STUDIES / "studies" / name / "study.json")


def analysis() -> Any:
    """How its weights moved."""
    return read_analysis(STUDIES / "analysis" / "analysis.json")


def environment(record: Any) -> Environment:
    """Where a script's record was measured."""
    return Environment.model_validate(record["environment"])


def machine(environment: Environment) -> str:
    """A machine as the pages name it."""
    if environment.gpu is not None:
        return environment.gpu
    return next((name for end, name in PROCESSORS.items() if environment.cpu.endswith(end)), environment.cpu)


def provider(result: Any, name: str) -> Any:
    """One provider of a case."""
    return next(one for one in result.providers if one.provider == name)


def ratio(
    result: CaseResult | StepCaseResult | InferCaseResult,
    name: str,
    against: str,
    quantity: Quantity = "time",
) -> float | None:
    """A provider's figure relative to another's, within the rounds of one case."""
    ratios = provider(result, name).ratios.get(quantity, {})
    return ratios.get(against)


def ratios(
    results: Iterable[CaseResult | StepCaseResult | InferCaseResult],
    name: str,
    against: str,
    quantity: Quantity = "time",
) -> list[float]:
    """A ratio in every case that has it."""
    found = (ratio(result, name, against, quantity) for result in results)
    return [value for value in found if value is not None]


def target(
    results: Iterable[CaseResult | StepCaseResult | InferCaseResult],
    name: str,
    against: str,
    quantity: Quantity = "time",
) -> tuple[float, int, int]:
    """A target that all cases share, how many meet it, and how many there are."""
    found = [
        one
        for result in results
        for one in result.verdicts
        if (one.provider, one.quantity, one.against) == (name, quantity, against)
    ]
    (at_most,) = {one.at_most for one in found}
    return at_most, sum(one.met is True for one in found), len(found)


def met(record: BenchRecord | StepBenchRecord) -> tuple[int, int]:
    """How many of a record's targets are met, and how many there are."""
    outcomes = [verdict.met for result in record.results for verdict in result.verdicts]
    return outcomes.count(True), len(outcomes)


def median(one: ProviderResult | StepProviderResult) -> float:
    """Milliseconds of a call or a step."""
    return one.milliseconds.median


def fit(points: list[tuple[float, float]]) -> tuple[float, float]:
    """The slope and the constant of a line through points, by least squares."""
    xs, ys = zip(*points, strict=True)
    x_mean, y_mean = sum(xs) / len(xs), sum(ys) / len(ys)
    products = sum((x - x_mean) * (y - y_mean) for x, y in points)
    slope = products / sum((x - x_mean) ** 2 for x in xs)
    return slope, y_mean - slope * x_mean
