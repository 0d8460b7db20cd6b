"""Whether a tensor is finite."""

from __future__ import annotations

import torch
from torch import Tensor


def is_finite(tensor: Tensor) -> bool:
    """Whether no value is NaN or infinite; of integers and of tensors without memory none is."""
    tensor = tensor.detach()
    if not tensor.is_floating_point() or tensor.is_meta:
        return True
    if tensor.element_size() == 1:
        tensor = tensor.float()  # PyTorch can neither add nor test floats of 8 bits
    # A sum keeps NaN and infinities, and takes one pass. Only one that overflows says nothing.
    return bool(tensor.sum(dtype=torch.float32).isfinite()) or bool(tensor.isfinite().all())
