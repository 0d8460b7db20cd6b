"""Decides whether the kernels are used."""

from __future__ import annotations

import functools
from contextlib import AbstractContextManager
from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor

from doratune.engine._internals import shared_memory_of
from doratune.engine.autocast import NOTHING

DTYPES = (torch.bfloat16, torch.float16, torch.float32)
OLDEST = (8, 0)
"""The first compute capability with bfloat16, Ampere's. The kernels are untested on AMD's GPUs."""


def taken(*tensors: Tensor) -> bool:
    """Whether the kernels take all tensors: not empty, in a supported dtype, on a GPU where kernels run."""
    for one in tensors:  # a loop, since this is asked in every call of a layer
        if not (one.is_cuda and one.dtype in DTYPES and one.numel() > 0):
            return False
    return _runs_on(tensors[0].device)


def launching(device: torch.device) -> AbstractContextManager[Any]:
    """A context for kernel launches: Triton launches on the current GPU, wherever the arguments are."""
    return NOTHING if torch.cuda.current_device() == device.index else torch.cuda.device(device)


def current_stream(device: torch.device) -> int:
    """The stream on which kernels are launched now."""
    return torch.cuda.current_stream(device).cuda_stream


def capturing(device: torch.device) -> bool:
    """Whether a CUDA graph is being captured, which may not copy from the host and outlives what it reads."""
    with launching(device):
        return torch.cuda.is_current_stream_capturing()


@functools.cache
def shared_memory(device: torch.device) -> int:
    """Bytes of shared memory that one program may use on a GPU; 0 if PyTorch does not say."""
    return shared_memory_of(torch.cuda.get_device_properties(device))


def kernel_obstacle(device: torch.device) -> str | None:
    """Why the kernels are not used on a device; None if they are."""
    if device.type != "cuda":
        return "no NVIDIA GPU"
    if torch.version.hip is not None:
        return "untested on AMD's GPUs"
    if find_spec("triton") is None:
        return "Triton is not installed"
    capability = torch.cuda.get_device_capability(device)
    if capability < OLDEST:
        return f"compute capability {capability[0]}.{capability[1]} is below {OLDEST[0]}.{OLDEST[1]}"
    return None


@functools.cache
def _runs_on(device: torch.device) -> bool:
    return kernel_obstacle(device) is None
