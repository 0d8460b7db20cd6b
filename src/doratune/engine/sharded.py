"""Whether a tensor is a part of one that several processes share."""

from __future__ import annotations

import torch
from torch import Tensor

if torch.distributed.is_available():
    from torch.distributed.tensor import DTensor

    _KINDS: tuple[type, ...] = (DTensor,)
else:
    _KINDS = ()


def is_sharded(tensor: Tensor) -> bool:
    """Whether a tensor is a DTensor, such as FSDP2's parameters outside the calls that need them."""
    return isinstance(tensor, _KINDS)
