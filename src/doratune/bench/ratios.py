"""Ratios between providers, and whether they meet the targets."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from doratune.records.bench import ProviderResult, StepProviderResult, Target, Verdict


def divide(figures: Mapping[str, int], provider: str, baselines: Sequence[str]) -> dict[str, float]:
    """A provider's figure over that of each baseline; one that is missing or zero is left out."""
    if provider not in figures:
        return {}
    return {name: figures[provider] / figures[name] for name in baselines if figures.get(name)}


def judge(targets: Sequence[Target], results: Sequence[ProviderResult | StepProviderResult]) -> list[Verdict]:
    """Each target beside what was measured."""
    ratios = {result.provider: result.ratios for result in results}
    verdicts = []
    for target in targets:
        measured = ratios.get(target.provider, {}).get(target.quantity, {}).get(target.against)
        met = None if measured is None else measured <= target.at_most
        verdicts.append(Verdict(**target.model_dump(), measured=measured, met=met))
    return verdicts
