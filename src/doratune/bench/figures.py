"""From measured rounds to figures: medians, ratios between providers, and whether they meet the targets."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from doratune.errors import DoratuneError
from doratune.records.bench import ProviderResult, StepProviderResult, Target, Timing, Verdict

WARMUP_ROUNDS = 2
"""Rounds before those that count."""
BASELINES = ("floor", "peft-lora", "peft-dora")
"""The providers that the others are divided by."""


class GateError(DoratuneError):
    """A provider computes something else than it should, so there are no figures."""


def summarise(rounds: list[float]) -> Timing:
    """The median of some milliseconds, and how they spread."""
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
    """How many times as long a provider takes as others: the median of the ratios within each round.

    Calls of one round lie next to one another, so a slow stretch of the machine cancels, which it does not in
    a ratio of two medians.
    """
    own = np.array(times[provider])
    return {name: float(np.median(own / np.array(times[name]))) for name in baselines if name in times}


def divide(figures: Mapping[str, int], provider: str, baselines: Sequence[str]) -> dict[str, float]:
    """A provider's figure over that of each baseline; one that is missing or zero is left out."""
    if provider not in figures:
        return {}
    return {name: figures[provider] / figures[name] for name in baselines if figures.get(name)}


def judge(targets: Sequence[Target], results: Sequence[ProviderResult | StepProviderResult]) -> list[Verdict]:
    """Compare each target with what was measured."""
    ratios = {result.provider: result.ratios for result in results}
    verdicts = []
    for target in targets:
        measured = ratios.get(target.provider, {}).get(target.quantity, {}).get(target.against)
        met = None if measured is None else measured <= target.at_most
        verdicts.append(Verdict(**target.model_dump(), measured=measured, met=met))
    return verdicts
