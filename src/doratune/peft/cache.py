"""‖W‖² of a frozen weight, kept as long as it is true."""

from __future__ import annotations

import torch
from torch import Tensor

from doratune.functional import row_norm_squared


class WeightNormCache:
    """Row norms of one weight, recomputed whenever the weight may have changed.

    A change is seen by the weight's address, version, dtype or device. Code that writes through
    ``weight.data`` may move none of these, so whoever does that calls ``drop``. A copy or an unpickled cache
    starts empty.
    """

    def __init__(self) -> None:
        self._key: tuple[object, ...] | None = None
        self._norm_sq: Tensor | None = None

    def get(self, weight: Tensor) -> Tensor:
        """``row_norm_squared(weight)``, (d_out,), float32 (float64 for a float64 weight)."""
        if weight.is_inference():  # has no version to tell a change by
            return row_norm_squared(weight)
        key = (weight.data_ptr(), weight._version, weight.dtype, weight.device)
        if self._norm_sq is None or self._key != key:
            # A tensor made in inference mode could not be used in training later.
            with torch.inference_mode(False):
                self._norm_sq = row_norm_squared(weight)
            self._key = key
        return self._norm_sq

    def drop(self) -> None:
        """Forget the norms."""
        self._key = self._norm_sq = None

    def __reduce__(self) -> tuple[type[WeightNormCache], tuple[()]]:
        return WeightNormCache, ()
