"""Runs that ended far below the others of their arm: with few seeds, one of them decides a result."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

FEWEST_RUNS = 3
TIMES = 3.0


def outliers(accuracies: Mapping[str, Sequence[float]], rows: int) -> dict[str, list[int]]:
    """By arm, the places of the runs that are far below its median.

    Far is more than three times the larger of two figures: the typical distance of a run from its arm's
    median over all arms (1.48 times the median distance), and the standard error of an accuracy over the
    rows, with Agresti and Coull's four made-up rows: without them it is 0 at 100 %. Arms with fewer than
    three runs have none.

    Args:
        accuracies: By arm, the accuracy of each run, as a share.
        rows: How many rows every run answered.
    """
    away = {
        arm: np.asarray(found) - np.median(found)
        for arm, found in accuracies.items()
        if len(found) >= FEWEST_RUNS
    }
    if not away:
        return {}
    # with an odd number of runs one is the median itself and says nothing about distances
    distances = [np.sort(np.abs(one))[len(one) % 2 :] for one in away.values()]
    typical = 1.4826 * float(np.median(np.concatenate(distances)))
    found: dict[str, list[int]] = {}
    for arm, one in away.items():
        middle = (float(np.median(accuracies[arm])) * rows + 2) / (rows + 4)
        limit = TIMES * max(typical, np.sqrt(middle * (1 - middle) / (rows + 4)))
        places = np.flatnonzero(one < -limit).tolist()
        if places:
            found[arm] = places
    return found
