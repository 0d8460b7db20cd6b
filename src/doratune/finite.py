"""Whether a tensor is finite, without a copy of it."""

from __future__ import annotations

import torch
from torch import Tensor


def is_finite(tensor: Tensor) -> bool:
    """Whether no value of ``tensor`` is NaN or infinite; integers and tensors without memory count as finite."""
    tensor = tensor.detach()
    if not tensor.is_floating_point() or tensor.is_meta:
        return True
    # A sum keeps NaN and infinities, and takes one pass. Only where it overflows must every value be looked at.
    return bool(tensor.sum(dtype=torch.float32).isfinite()) or bool(tensor.isfinite().all())
