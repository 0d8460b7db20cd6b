"""How far the rows of a weight moved in magnitude and in direction, and whether the two move together."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from scipy.stats import linregress, pearsonr
from torch import Tensor

from doratune.records.analysis import KindCorrelation, WeightChange

EPSILON = torch.finfo(torch.float32).eps


@dataclass(frozen=True)
class Rows:
    """Some rows of one weight, in float64.

    Attributes:
        before: W_0, (n, d_in).
        after: The same rows after training, (n, d_in); for DoRA V = W_0 + s·B·A, the direction only.
        magnitude: DoRA's m, (n,), the length of the rows; None where they have that of ``after``.
    """

    before: Tensor
    after: Tensor
    magnitude: Tensor | None = None


@dataclass(frozen=True)
class Change:
    """What happened to a weight.

    Attributes:
        magnitude: ΔM, the mean over the rows of how much longer or shorter they are.
        direction: ΔD, the mean over the rows of 1 - cos of the angle they turned by. A row of zeros has no
            direction and is left out.
        rounding: Whether neither is more than float32, which weights are kept in, rounds.
        gain_mean: Mean of DoRA's g = m / ‖V‖ over the rows; None without m.
        gain_deviation: Root mean square of g - 1; None without m.
    """

    magnitude: float
    direction: float
    rounding: bool = False
    gain_mean: float | None = None
    gain_deviation: float | None = None


def measure(parts: Iterable[Rows]) -> Change:
    """Measure one weight.

    Args:
        parts: All of its rows, in parts of any size; either all or none of them with a magnitude.

    Returns:
        The change, in float64.
    """
    lengths, turns, gains, norms = [], [], [], []
    for part in parts:
        before, after = (torch.linalg.vector_norm(rows, dim=1) for rows in (part.before, part.after))
        sign, length = torch.ones_like(after), after
        if part.magnitude is not None:
            gain = torch.where(after > 0, part.magnitude / after, 0.0)  # as in training: 0·(m / 0) is 0
            gains.append(gain)
            sign, length = part.magnitude.sign(), gain.abs() * after
        norms.append(before)
        lengths.append((length - before).abs())
        turned = (before > 0) & (length > 0)
        # 1 - cos is half the squared distance of the unit vectors, which loses no digits at small angles.
        unit_before = part.before[turned] / before[turned, None]
        unit_after = part.after[turned] * (sign / after)[turned, None]
        turns.append((unit_after - unit_before).square().sum(dim=1) / 2)
    direction = torch.cat(turns)
    magnitude, turn = torch.cat(lengths).mean().item(), direction.mean().item() if len(direction) else 0.0
    # Half the squared length of a unit vector's rounding, as a turn is measured.
    rounding = magnitude <= EPSILON * torch.cat(norms).mean().item() and turn <= EPSILON**2 / 2
    if not gains:
        return Change(magnitude, turn, rounding)
    gain = torch.cat(gains)
    deviation = (gain - 1).square().mean().sqrt().item()
    return Change(magnitude, turn, rounding, gain_mean=gain.mean().item(), gain_deviation=deviation)


def correlations(changes: Sequence[WeightChange]) -> list[KindCorrelation]:
    """Over all weights and checkpoints first, then for each kind of layer.

    Args:
        changes: Every adapted weight at every checkpoint of one run. Those that moved by rounding only
            are left out: rounding has correlations too.
    """
    kinds = dict.fromkeys(change.kind for change in changes)
    changes = [change for change in changes if not change.rounding]
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
