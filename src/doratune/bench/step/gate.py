"""The check of ``doratune bench step``: providers that train the same have the same losses."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from doratune.bench.figures import GateError
from doratune.bench.step.providers import ALIKE
from doratune.records.bench import DType

FIRST_LIMITS: dict[DType, float] = {
    # An adapter starts as the base model, but for DoRA's magnitude, which PEFT makes in the base's dtype.
    "bfloat16": 5e-3,
    "float32": 1e-4,
}
"""How far apart the first losses may be, relatively, over all providers."""

LIMITS: dict[DType, float] = {
    # What an adapter adds in its first steps is below half a unit in the last place of most outputs. How much
    # of it survives depends on where a computation rounds, and the first steps of Adam make it 1 to 2 %.
    "bfloat16": 3e-2,
    # Roundings of 6e-8 that Adam enlarges where a gradient is near zero; 1e-6 in three steps of SmolLM2.
    "float32": 1e-4,
}
"""How far apart the losses of two providers that train the same may be, relatively, in each step."""


def check_losses(losses: Mapping[str, Sequence[float]], dtype: DType) -> None:
    """Compare the losses of the providers, as far as they have come.

    Args:
        losses: Of each step, by provider; all have come equally far. One that ran out of memory is not there.
        dtype: The case's.

    Raises:
        GateError: Some are further apart than the limits, or not finite.
    """
    first = {name: steps[0] for name, steps in losses.items()}
    lowest = min(first, key=first.__getitem__)
    for name in first:
        _compare(first[name], first[lowest], FIRST_LIMITS[dtype], f"step 1 of {name} and {lowest}")
    for name, other in ALIKE.items():
        if name not in losses or other not in losses:
            continue
        for step, (ours, theirs) in enumerate(zip(losses[name], losses[other], strict=True), start=1):
            _compare(ours, theirs, LIMITS[dtype], f"step {step} of {name} and {other}")


def _compare(found: float, right: float, limit: float, where: str) -> None:
    if not abs(found - right) <= limit * abs(right):
        raise GateError(
            "two providers that train the same have different losses, so no figure is given",
            where=where,
            got=f"losses of {found:.5f} and {right:.5f}",
            expected=f"no further apart than {limit:.0e} of the loss",
        )
