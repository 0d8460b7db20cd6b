"""The work of a process of ``doratune bench step``; no torch, see ``turns.Work``."""

from __future__ import annotations

from doratune.bench.step.providers import StepReport, Trainee
from doratune.bench.step.turns import Turn


def train(trainee: Trainee, turn: Turn) -> StepReport:
    """Train until no turn comes any more; a turn is one optimizer step, its outcome the loss of that step."""
    from doratune.bench.step.loops import run

    return run(trainee, turn)
