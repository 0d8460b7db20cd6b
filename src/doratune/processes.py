"""The processes that a launcher such as torchrun started for one command, and which of them this is.

Without torch until the processes join: a verb that works alone refuses several of them in an instant.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import TYPE_CHECKING, TypeVar

from doratune.errors import DoratuneError

if TYPE_CHECKING:
    from accelerate import PartialState

Found = TypeVar("Found")

# In the order of accelerate, which reads mpirun's names only on CPUs.
_COUNTS = ("WORLD_SIZE", "PMI_SIZE", "OMPI_COMM_WORLD_SIZE", "MV2_COMM_WORLD_SIZE")
_RANKS = ("RANK", "PMI_RANK", "OMPI_COMM_WORLD_RANK", "MV2_COMM_WORLD_RANK")


def launched() -> int:
    """How many processes the launcher started; 1 without one."""
    return _number(_COUNTS, 1)


def rank() -> int:
    """Which of them this is, from 0 on."""
    return _number(_RANKS, 0)


def is_first() -> bool:
    """Whether this is the process that writes and prints."""
    return rank() == 0


def join() -> PartialState:
    """Join the other processes. Only the first call does so, and it must come before ``PartialState()``.

    On a machine without a GPU accelerate must be told, or every process would be one by itself.

    Returns:
        accelerate's state of this process.

    Raises:
        DoratuneError: accelerate was asked before, and took this process for the only one.
    """
    import torch
    from accelerate import PartialState

    device = torch.accelerator.current_accelerator(check_available=True)
    no_gpu = device is None or device.type == "mps"
    asked = os.environ.get("ACCELERATE_USE_CPU", "").lower() in ("1", "true", "yes", "on")
    state = PartialState(cpu=launched() > 1 and (no_gpu or asked))
    if state.num_processes != launched():
        raise DoratuneError(
            "the processes of this command did not find each other",
            got=f"{state.num_processes} of {launched()}",
            fix="start them with torchrun, or with accelerate launch on GPUs",
        )
    return state


def from_first(decide: Callable[[], Found]) -> Found:
    """What the first process decides, in all of them; the others wait for it."""
    state = join()
    found = decide() if state.is_main_process else None
    if state.num_processes > 1:
        from accelerate.utils import broadcast_object_list

        (found,) = broadcast_object_list([found])
    return found  # pyright: ignore[reportReturnType]


def _number(names: tuple[str, ...], default: int) -> int:
    found = next((value for name in names if (value := os.environ.get(name))), "")
    return int(found) if found.isdecimal() else default
