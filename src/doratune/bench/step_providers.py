"""Whose training step is measured. No torch here: see ``turns.Work``."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Method = Literal["lora", "dora"]


@dataclass(frozen=True)
class Frozen:
    """The base model without an adapter: forward, loss and backward to the embedded input.

    Attributes:
        name: Its name in tables and records.
        attention: By transformers' name.
    """

    name: str
    attention: str


@dataclass(frozen=True)
class Stock:
    """TRL's SFTTrainer with PEFT, as its users run it.

    Attributes:
        name: Its name in tables and records.
        method: What is trained.
    """

    name: str
    method: Method


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
STEP_PROVIDERS: tuple[StepProvider, ...] = (
    *FLOORS,
    Stock("peft-lora", "lora"),
    Stock("peft-dora", "dora"),
    Ours("doratune-lora", "lora"),
    Ours("doratune-dora", "dora"),
)
ALIKE = {"doratune-lora": "peft-lora", "doratune-dora": "peft-dora"}
"""Providers that train the same, step by step, and so must have the same losses."""
