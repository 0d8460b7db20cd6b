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
"""Those of ``benchmarks/one_line.py``: what ``doratune.enable`` does to a script of one's own."""
ALIKE = {
    "doratune-lora": "peft-lora",
    "doratune-dora": "peft-dora",
    "enabled-lora": "peft-lora",
    "enabled-dora": "peft-dora",
}
"""Providers that train the same, step by step, and so must have the same losses."""
