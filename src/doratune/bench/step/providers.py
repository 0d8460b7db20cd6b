"""The providers, and the inputs and reports of their processes. No torch here: see ``turns.Work``."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from doratune.records.bench import StepCase

Method = Literal["lora", "dora"]


@dataclass(frozen=True)
class Frozen:
    """The base model without an adapter: forward, loss and backward to the embedded input.

    Attributes:
        name: Its name in tables and records.
        attention: transformers' name of the attention implementation.
    """

    name: str
    attention: str


@dataclass(frozen=True)
class Stock:
    """TRL's SFTTrainer with PEFT, as its users run it.

    Attributes:
        name: Its name in tables and records.
        method: What is trained.
        enabled: Whether ``doratune.enable`` is called once the trainer has built its model.
    """

    name: str
    method: Method
    enabled: bool = False


@dataclass(frozen=True)
class Ours:
    """The trainer of ``doratune train``.

    Attributes:
        name: Its name in tables and records.
        method: What is trained.
    """

    name: str
    method: Method


StepProvider = Frozen | Stock | Ours

FLOORS = (Frozen("floor-eager", "eager"), Frozen("floor-sdpa", "sdpa"))
STOCK = (Stock("peft-lora", "lora"), Stock("peft-dora", "dora"))
STEP_PROVIDERS: tuple[StepProvider, ...] = (
    *FLOORS,
    *STOCK,
    Ours("doratune-lora", "lora"),
    Ours("doratune-dora", "dora"),
)
ONE_LINE = (
    *STOCK,
    Stock("enabled-lora", "lora", enabled=True),
    Stock("enabled-dora", "dora", enabled=True),
)
"""The providers of ``benchmarks/one_line.py``: what ``doratune.enable`` does for a user's script."""
ALIKE = {
    "doratune-lora": "peft-lora",
    "doratune-dora": "peft-dora",
    "enabled-lora": "peft-lora",
    "enabled-dora": "peft-dora",
}
"""Pairs of providers that train alike, step by step, and so must have the same losses."""


@dataclass(frozen=True)
class StepReport:
    """What a process reports at its end.

    Attributes:
        attention: transformers' name of the model's attention implementation.
        trainable: Number of trained parameters.
        before_bytes: Memory held before the first step; None if unknown.
        peak_bytes: The most memory held since the process began.
    """

    attention: str
    trainable: int
    before_bytes: int | None
    peak_bytes: int


@dataclass(frozen=True)
class Trainee:
    """What a process trains.

    Attributes:
        provider: Says which training loop to use.
        case: What is trained.
        model: The base model's name, as for ``inputs.load_base``.
        steps: Optimizer steps of the schedule.
        threads: torch's threads inside an operation.
    """

    provider: StepProvider
    case: StepCase
    model: str
    steps: int
    threads: int
