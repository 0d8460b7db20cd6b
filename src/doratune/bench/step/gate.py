"""The check of ``doratune bench step``: providers that should train alike have the same losses."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from doratune.bench.figures import GateError
from doratune.bench.step.providers import ALIKE
from doratune.records.bench import DType

FIRST_LIMITS: dict[DType, float] = {
    # An adapted model starts as the base model, except that PEFT rounds DoRA's magnitude to the base's dtype.
    "bfloat16": 5e-3,
    "float32": 1e-4,
}
"""The largest relative difference between the first losses of any two providers."""

LIMITS: dict[DType, float] = {
    # In the first steps an adapter adds less than half a unit in the last place of most outputs. How much of
    # that survives depends on where a computation rounds, and Adam's first steps turn it into 1 to 2 %.
    "bfloat16": 3e-2,
    # Roundings of 6e-8, which Adam amplifies where a gradient is near zero; 1e-6 in three steps of SmolLM2.
    "float32": 1e-4,
}
"""The largest relative difference, in each step, between two providers that should train alike."""


def check_losses(losses: Mapping[str, Sequence[float]], dtype: DType) -> None:
    """Compare the providers' losses so far.

    Args:
        losses: The loss of each step, by provider, with the same number of steps for all; without those that
            ran out of memory.
        dtype: The case's dtype.

    Raises:
        GateError: Losses differ by more than the limits, or are not finite.
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
            "two providers that should train alike have different losses, so there are no figures",
            where=where,
            got=f"losses of {found:.5f} and {right:.5f}",
            expected=f"a relative difference of at most {limit:.0e}",
        )
