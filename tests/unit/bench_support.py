"""Small cases for the tests of the bench."""

from __future__ import annotations

from typing import Any

import torch

from doratune.bench.config import OpBenchConfig
from doratune.bench.op.cases import CaseEntry, CaseFile
from doratune.bench.op.layer_data import LayerData, draw_layer
from doratune.bench.op.providers import PROVIDERS, Provider, Subject, UnavailableError, build
from doratune.records.bench import Case, Target

CPU = torch.device("cpu")
QUICK = OpBenchConfig(rounds=2, memory=False)


def small_case(**changes: Any) -> Case:
    values = {"name": "small", "d_in": 64, "d_out": 96, "rank": 4, "tokens": 32}
    return Case(**{**values, "dtype": "float32", "base": "dense", **changes})


def small_file() -> CaseFile:
    """A case for a CPU in float32, one in bfloat16, and one for a GPU."""
    entries = [
        CaseEntry(**small_case(**changes).model_dump(), targets={"peft-lora": 0.0})
        for changes in ({}, {"name": "small-bfloat16", "dtype": "bfloat16"}, {"name": "small-gpu"})
    ]
    met = [
        Target(provider="doratune-dora", quantity="saved", against="peft-dora", at_most=9.0),
        Target(provider="doratune-dora", quantity="peak", against="peft-dora", at_most=9.0),
    ]
    return CaseFile(timed_for=["doratune-dora"], every_case=met, cpu=entries[:2], gpu=entries[2:])


def provider(name: str) -> Provider:
    return next(provider for provider in PROVIDERS if provider.name == name)


def subject_of(name: str, case: Case | None = None) -> tuple[Subject, LayerData]:
    case = case or small_case()
    data = draw_layer(case, CPU)
    return build(provider(name), case, data), data


def available(case: Case) -> list[str]:
    """The providers that run a case."""
    names = []
    for one in PROVIDERS:
        try:
            build(one, case, draw_layer(case, CPU))
        except UnavailableError:
            continue
        names.append(one.name)
    return names
