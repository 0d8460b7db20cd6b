from __future__ import annotations

import io
import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console

from doratune.bench import step
from doratune.bench.config import StepBenchConfig
from doratune.bench.gate import GateError
from doratune.bench.step_cases import StepEntry, StepFile, read_steps
from doratune.bench.step_child import StepReport, Trainee
from doratune.bench.step_floor import FrozenStep
from doratune.bench.step_gate import FIRST_LIMITS, LIMITS, check_losses
from doratune.bench.step_providers import STEP_PROVIDERS, Frozen
from doratune.bench.step_rows import draw_rows
from doratune.bench.step_trainers import doratune_trainer, stock_trainer
from doratune.bench.table import step_renderable
from doratune.bench.turns import Move
from doratune.errors import InputError
from doratune.peft.linear import EngineLinear
from doratune.records.bench import StepBenchRecord, StepCase

NAMES = [provider.name for provider in STEP_PROVIDERS]
MILLISECONDS = {"floor-eager": 2.0, "floor-sdpa": 1.0, "peft-lora": 4.0, "peft-dora": 8.0}
CONFIG = StepBenchConfig(model="some-model", rounds=3)


def small_case(**changes: Any) -> StepCase:
    values = {"name": "small", "rows": 2, "tokens": 16, "answer_tokens": 3, "loss_on": "answer"}
    return StepCase(**{**values, "rank": 4, "alpha": 8, "dtype": "float32", **changes})


def small_file() -> StepFile:
    limits = {"time": {"floor": 3.5, "peft-lora": 0.5}, "peak": {"peft-dora": 0.7}}
    headline = StepEntry.model_validate({**small_case(dtype="bfloat16").model_dump(), "targets": limits})
    growth = StepEntry.model_validate({**small_case(name="grown").model_dump(), "targets": {}})
    return StepFile(targets_for="doratune-dora", headline=[headline], growth=[growth])


class Game:
    """Processes whose times, losses and memory are made up."""

    def __init__(self, works: Mapping[str, Trainee], wrong: tuple[str, int]) -> None:
        self.works, self.wrong = works, wrong

    def play(self, number: int) -> dict[str, Move]:
        slow = 10.0 if number in (0, 1, 3) else 1.0  # both of the warm-up, and one round
        return {
            name: Move(slow * MILLISECONDS.get(name, 3.0), 5.0 - number + 0.5 * ((name, number) == self.wrong))
            for name in self.works
        }

    def finish(self) -> dict[str, StepReport]:
        return {
            name: StepReport("sdpa", 0, 100, 1000 * (1 + NAMES.index(name))) for name in self.works
        }


@pytest.fixture
def played(monkeypatch: pytest.MonkeyPatch) -> list[list[Trainee]]:
    """No processes; the works that they would have done are listed."""
    works: list[list[Trainee]] = []

    def patch(wrong: tuple[str, int] = ("nobody", 0)) -> None:
        @contextmanager
        def players(given: Mapping[str, Trainee]) -> Iterator[Game]:
            works.append(list(given.values()))
            yield Game(given, wrong)

        monkeypatch.setattr(step, "players", players)

    patch()
    monkeypatch.setattr(step, "read_steps", small_file)
    works.patch = patch  # pyright: ignore
    return works
