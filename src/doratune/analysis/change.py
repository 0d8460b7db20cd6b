"""Measures how far a weight's rows moved in magnitude and direction, and how the two correlate."""

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
        after: The same rows after training, (n, d_in); for DoRA V = W_0 + s·B·A, only their direction.
        magnitude: DoRA's m, (n,), the length of the rows; None if ``after`` has it.
    """

    before: Tensor
    after: Tensor
    magnitude: Tensor | None = None


@dataclass(frozen=True)
class Change:
    """How a weight changed.

    Attributes:
        magnitude: ΔM, the mean over the rows of the absolute change of their length.
        direction: ΔD, the mean over the rows of 1 - cos of the angle they turned by. A row of zeros has no
            direction and is left out.
        rounding: Whether both are within the rounding of float32, in which weights are kept.
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
        parts: All of its rows, in parts of any size; either all parts have a magnitude or none.

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
    # In units of ``turn``, a unit vector's rounding counts as half its squared length.
    rounding = magnitude <= EPSILON * torch.cat(norms).mean().item() and turn <= EPSILON**2 / 2
    if not gains:
        return Change(magnitude, turn, rounding)
    gain = torch.cat(gains)
    deviation = (gain - 1).square().mean().sqrt().item()
    return Change(magnitude, turn, rounding, gain_mean=gain.mean().item(), gain_deviation=deviation)


def correlations(changes: Sequence[WeightChange]) -> list[KindCorrelation]:
    """Correlations of ΔD and ΔM: first over all weights and checkpoints, then for each kind of layer.

    Args:
        changes: Every adapted weight at every checkpoint of one run. Those that moved only by rounding are
            left out, since rounding has correlations too.
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
