"""The work of one process of ``doratune bench step``. No torch here: see ``turns.Work``."""

from __future__ import annotations

from doratune.bench.step.providers import StepReport, Trainee
from doratune.bench.step.turns import Turn


def train(trainee: Trainee, turn: Turn) -> StepReport:
    """Train until the turns are over; a turn is one optimizer step, and its outcome is the step's loss."""
    from doratune.bench.step.loops import run

    return run(trainee, turn)
