"""How much memory this process holds, and has held at most."""

from __future__ import annotations

import ctypes
import resource
import sys
from pathlib import Path
from typing import Literal

import psutil
import torch

_M_MMAP_THRESHOLD = -3  # from malloc.h


def peak_memory_bytes() -> int:
    """Peak bytes since the process began: GPU memory if there is a GPU, otherwise resident memory.

    A process that does several runs measures the largest, so a comparison starts a process for each run.
    """
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated()
    if sys.platform == "linux":
        return resident_bytes("VmHWM")  # ru_maxrss would be the parent's peak if that was larger
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def held_memory_bytes() -> int | None:
    """Bytes that this process holds now, counted as by ``peak_memory_bytes``; None if unknown."""
    if torch.cuda.is_available():
        return torch.cuda.memory_allocated()
    return resident_bytes("VmRSS") if sys.platform == "linux" else None


def available_memory_bytes() -> int:
    """Bytes of memory that a process can still have without swapping."""
    return psutil.virtual_memory().available


def resident_bytes(which: Literal["VmRSS", "VmHWM"]) -> int:
    """Resident bytes of this process on Linux: now (VmRSS), or at the high-water mark (VmHWM).

    Raises:
        OSError: Not on Linux.
        KeyError: The kernel does not report it.
    """
    for line in Path("/proc/self/status").read_text(encoding="ascii").splitlines():
        if line.startswith(f"{which}:"):
            return int(line.split()[1]) * 1024  # in kibibytes there
    raise KeyError(which)


def give_freed_memory_back(block_bytes: int) -> None:
    """Let glibc give a tensor's memory back to the system when it is freed, instead of keeping it.

    glibc keeps freed blocks of up to 32 MiB once one of that size was freed, and where tensors of many sizes
    follow each other, much of that is never used again. This holds for the whole process from now on. Other C
    libraries have no such setting, and nothing changes.

    Args:
        block_bytes: From this size on. Smaller blocks are faster kept.
    """
    libc = ctypes.CDLL(None)
    if hasattr(libc, "mallopt"):
        libc.mallopt(_M_MMAP_THRESHOLD, block_bytes)
        libc.malloc_trim(0)
