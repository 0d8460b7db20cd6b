"""Whether a tensor is finite."""

from __future__ import annotations

import torch
from torch import Tensor


def is_finite(tensor: Tensor) -> bool:
    """Whether no value is NaN or infinite; always True for integers and meta tensors."""
    tensor = tensor.detach()
    if not tensor.is_floating_point() or tensor.is_meta:
        return True
    if tensor.element_size() == 1:
        tensor = tensor.float()  # PyTorch can neither add nor test 8-bit floats
    # A sum passes on NaN and infinities, in one pass. If it is not finite, it may have overflowed: test each.
    return bool(tensor.sum(dtype=torch.float32).isfinite()) or bool(tensor.isfinite().all())
