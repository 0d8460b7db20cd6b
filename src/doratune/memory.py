"""The most memory this process has held."""

from __future__ import annotations

import resource
import sys

import torch


def peak_memory_bytes() -> int:
    """Bytes at the highest point since the process began: GPU memory if there is a GPU, else resident.

    A process that does several runs measures the largest of them, so a comparison gives every run its own.
    """
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated()
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
