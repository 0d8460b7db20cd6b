"""Holm's correction of p-values for several tests."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np


def holm(p_values: Sequence[float]) -> list[float]:
    """The p-values corrected by Holm's method, in the same order."""
    from statsmodels.stats.multitest import multipletests

    return [float(p) for p in np.asarray(multipletests(p_values, method="holm")[1])] if p_values else []
