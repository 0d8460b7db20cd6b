"""Describes the machine of a benchmark: the environment and all else that affects speed and memory."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import PurePath

import torch
from torch.utils.benchmark import Timer

from doratune.engine.cpu_traits import cpu_features
from doratune.engine.matmul import is_widened
from doratune.environment import describe_environment
from doratune.records.bench import DType, Machine

logger = logging.getLogger(__name__)

MATMUL_SIDE = 8192
MATMULS = 11


def describe_machine(device: torch.device) -> Machine:
    """Describe the current machine and process."""
    return Machine(
        environment=describe_environment(),
        device=device.type,
        threads=torch.get_num_threads(),
        cpu_features=cpu_features(),
        allocator=_allocator(),
    )


def warn_of_slow_products(dtypes: Sequence[DType], device: torch.device) -> None:
    """Log a warning if PyTorch's own products in one of the dtypes are very slow on the device."""
    for dtype in dict.fromkeys(dtypes):
        if device.type == "cpu" and is_widened(torch.empty(0, dtype=getattr(torch, dtype))):
            logger.warning(
                "PyTorch has no fast products of %s on this CPU, so a round may take minutes; "
                "--dtype float32 measures the same in float32",
                dtype,
            )


def matmul_tflops(device: torch.device) -> float:
    """10¹² operations per second in a product of bfloat16 matrices, as the mean of a few products."""
    a, b = (torch.randn(MATMUL_SIDE, MATMUL_SIDE, device=device, dtype=torch.bfloat16) for _ in range(2))
    timer = Timer("torch.mm(a, b)", globals={"torch": torch, "a": a, "b": b})  # waits for the device
    timer.timeit(1)  # warms up
    return 2 * MATMUL_SIDE**3 / timer.timeit(MATMULS).median / 1e12


@contextmanager
def torch_threads(count: int | None) -> Iterator[None]:
    """Let torch use ``count`` threads inside an operation; None: as many as it does now."""
    before = torch.get_num_threads()
    torch.set_num_threads(count or before)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _allocator() -> dict[str, str]:
    """Environment variables of glibc's and torch's allocators, and the names of preloaded libraries."""
    names = ("GLIBC_TUNABLES", "PYTORCH_ALLOC_CONF", "PYTORCH_CUDA_ALLOC_CONF")
    found = {
        name: value
        for name, value in sorted(os.environ.items())
        if name.startswith("MALLOC_") or name in names
    }
    preloaded = os.environ.get("LD_PRELOAD", "").replace(":", " ").split()
    if preloaded:
        found["LD_PRELOAD"] = " ".join(PurePath(path).name for path in preloaded)
    return found
