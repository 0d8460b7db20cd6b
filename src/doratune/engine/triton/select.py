"""Whether a tensor goes to the kernels."""

from __future__ import annotations

import functools
from importlib.util import find_spec

import torch
from torch import Tensor

DTYPES = (torch.bfloat16, torch.float16, torch.float32)


def taken(*tensors: Tensor) -> bool:
    """Whether all are on a GPU, not empty, and in a dtype that the kernels take; and Triton is here."""
    return _is_here() and all(one.is_cuda and one.dtype in DTYPES and one.numel() > 0 for one in tensors)


@functools.cache
def _is_here() -> bool:
    return find_spec("triton") is not None
