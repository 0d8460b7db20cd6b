"""Turns measured rounds into figures: medians, ratios between providers, and whether they meet targets."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from doratune.errors import DoratuneError
from doratune.records.bench import (
    InferProviderResult,
    ProviderResult,
    StepProviderResult,
    Target,
    Timing,
    Verdict,
)

WARMUP_ROUNDS = 2
"""Rounds before the timed ones."""
BASELINES = ("floor", "peft-lora", "peft-dora")
"""The providers whose figures the others are divided by."""


class GateError(DoratuneError):
    """A provider's results are wrong, so there are no figures."""


def summarise(rounds: list[float]) -> Timing:
    """The median and the spread of times in milliseconds."""
    lowest, lower, middle, upper = np.quantile(rounds, (0, 0.25, 0.5, 0.75)).tolist()
    return Timing(
        median=middle,
        minimum=lowest,
        lower_quartile=lower,
        upper_quartile=upper,
        count=len(rounds),
        rounds=rounds,
    )


def time_ratios(
    times: Mapping[str, list[float]], provider: str, baselines: Sequence[str]
) -> dict[str, float]:
    """A provider's time relative to each baseline: the median of the ratios within each round.

    The calls of one round follow one another, so a slow stretch of the machine cancels out, which it does not
    in a ratio of two medians.
    """
    own = np.array(times[provider])
    return {name: float(np.median(own / np.array(times[name]))) for name in baselines if name in times}


def divide(figures: Mapping[str, int], provider: str, baselines: Sequence[str]) -> dict[str, float]:
    """A provider's figure divided by each baseline's; a baseline that is missing or zero is left out."""
    if provider not in figures:
        return {}
    return {name: figures[provider] / figures[name] for name in baselines if figures.get(name)}


def judge(
    targets: Sequence[Target],
    results: Sequence[ProviderResult | StepProviderResult | InferProviderResult],
) -> list[Verdict]:
    """Compare each target with the measured ratio."""
    ratios = {result.provider: result.ratios for result in results}
    verdicts = []
    for target in targets:
        measured = ratios.get(target.provider, {}).get(target.quantity, {}).get(target.against)
        met = None if measured is None else measured <= target.at_most
        verdicts.append(Verdict(**target.model_dump(), measured=measured, met=met))
    return verdicts
