"""What a process of ``doratune bench step`` is told, and what it reports; no torch, see ``turns.Work``."""

from __future__ import annotations

from dataclasses import dataclass

from doratune.bench.step.providers import StepProvider
from doratune.bench.step.turns import Turn
from doratune.records.bench import StepCase


@dataclass(frozen=True)
class StepReport:
    """What a process knows at its end.

    Attributes:
        attention: The model's attention, by transformers' name.
        trainable: Number of trained parameters.
        before_bytes: Memory held before the first step; None if not known.
        peak_bytes: The most memory held since the process began.
    """

    attention: str
    trainable: int
    before_bytes: int | None
    peak_bytes: int


@dataclass(frozen=True)
class Trainee:
    """A provider's training loop: one turn is one optimizer step, its outcome the loss of that step.

    Attributes:
        provider: Whose loop.
        case: What is trained.
        model: The base model, as ``base.load_base`` takes it.
        steps: Optimizer steps of the schedule.
        threads: torch's threads inside an operation.
    """

    provider: StepProvider
    case: StepCase
    model: str
    steps: int
    threads: int

    def __call__(self, turn: Turn) -> StepReport:
        """Train until no turn comes any more."""
        from doratune.bench.step.loops import run

        return run(self, turn)
