"""Whether magnitude and direction move together: Pearson's correlation and a line through the points."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from scipy.stats import linregress, pearsonr

from doratune.records.analysis import KindCorrelation, WeightChange


def correlations(changes: Sequence[WeightChange]) -> list[KindCorrelation]:
    """Over all weights and checkpoints first, then for each kind of layer.

    Args:
        changes: Every adapted weight at every checkpoint of one run.
    """
    kinds = dict.fromkeys(change.kind for change in changes)
    return [
        _correlate("all", changes),
        *(_correlate(kind, [change for change in changes if change.kind == kind]) for kind in kinds),
    ]


def _correlate(kind: str, changes: Sequence[WeightChange]) -> KindCorrelation:
    directions = [change.direction for change in changes]
    magnitudes = [change.magnitude for change in changes]
    if len(set(directions)) < 2 or len(set(magnitudes)) < 2:
        return KindCorrelation(kind=kind, correlation=None, slope=None, points=len(changes))
    together: Any = pearsonr(directions, magnitudes)
    line: Any = linregress(directions, magnitudes)
    return KindCorrelation(
        kind=kind,
        correlation=float(together.statistic),
        slope=float(line.slope),
        points=len(changes),
    )
