"""Several processes as one: they meet before anything is read, and they end together.

Without this, an error in one process leaves the others waiting for it, and an error in all of them is shown
as often as there are processes.
"""

from __future__ import annotations

import datetime
import logging
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

import torch
from accelerate import PartialState
from accelerate.utils import broadcast_object_list, gather_object, parse_flag_from_env

from doratune.errors import DivergedError, DoratuneError, InputError, OtherProcessError, StoppedError
from doratune.launch import launched, refuse_lone_process

logger = logging.getLogger(__name__)

FSDP = "--use_fsdp"
DIVIDING = {"ACCELERATE_USE_FSDP": FSDP, "ACCELERATE_USE_DEEPSPEED": "--use_deepspeed"}
"""What ``accelerate launch`` sets, and for which flag."""
PATIENCE = datetime.timedelta(minutes=30)
"""How long a process waits for the others, as in transformers' Trainer: loading a model may take long."""
GONE = ("Connection closed by peer", "Connection reset by peer", "Broken pipe", "remote process exited")
"""What gloo and NCCL say when a process that they wait for has ended."""

Result = TypeVar("Result")


def join_processes(*, cpu: bool = False) -> PartialState:
    """Connect the processes of a launcher; further calls change nothing.

    Args:
        cpu: Work on CPUs, even where there are GPUs.

    Returns:
        accelerate's view of them. On CPUs it sees other processes only if it is told that it runs on CPUs.

    Raises:
        InputError: The launcher started more processes than there are GPUs, or others than accelerate can
            connect.
    """
    refuse_lone_process()
    asked = launched()
    cpu = cpu or parse_flag_from_env("ACCELERATE_USE_CPU") or not torch.accelerator.is_available()
    here = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    if not cpu and here > torch.accelerator.device_count():
        raise InputError(
            "there are more processes than GPUs on this machine",
            got=f"{here} processes, GPUs: {torch.accelerator.device_count()}",
            expected="a GPU for each process",
            fix="start fewer processes; to use the CPUs instead, set ACCELERATE_USE_CPU=true",
        )
    state = PartialState(cpu=cpu, timeout=PATIENCE)
    if state.num_processes != asked.processes:
        raise InputError(
            "the processes that were started cannot be connected",
            got=f"{asked.processes} processes on {state.device}; this one sees {state.num_processes}",
            expected="NVIDIA GPUs or CPUs, and a launcher such as torchrun or accelerate launch",
        )
    return state


def divided_by_launcher() -> list[str]:
    """The flags of ``accelerate launch`` by which this launch divides a model among its processes."""
    return [flag for name, flag in DIVIDING.items() if parse_flag_from_env(name)]


def fsdp_asked() -> bool:
    """Whether the launch asks for FSDP."""
    return FSDP in divided_by_launcher()


@contextmanager
def together() -> Iterator[None]:
    """Around what every process does: if one of them fails, all of them do, and one has an error to show.

    A process must not wait for another one inside, as it would wait in vain for one that has failed.
    Gathering what is sharded is an exception, as it succeeds in all or in none.

    Raises:
        OtherProcessError: Another process failed.
    """
    state = PartialState()
    if state.num_processes == 1:
        yield
        return
    own: Exception | None = None
    try:
        yield
    except Exception as error:  # whatever it is, the others must not wait
        own = error
    try:
        with _others_are_there():
            ends: list[tuple[int, str] | None] = gather_object([own and _end(own)])
    except OtherProcessError as error:
        raise own or error from None
    failed = next((index for index, end in enumerate(ends) if end is not None), None)
    if own is not None and failed == state.process_index:
        raise own
    if failed is not None:
        code, message = ends[failed] or (1, "")
        raise OtherProcessError(failed, message, exit_code=code) from own


def in_first(work: Callable[[], Result]) -> Result:
    """Call a function in the first process, and return its result, or its error, in all of them.

    Args:
        work: What to do; the result is pickled.

    Raises:
        OtherProcessError: It failed, in the other processes.
    """
    results: list[Any] = [None]
    with together():
        if PartialState().is_main_process:
            results[0] = work()
    return broadcast_object_list(results)[0]


@contextmanager
def same_end() -> Iterator[None]:
    """Around work in which processes wait for each other, and agree on how it ends.

    Raises:
        OtherProcessError: In all but the first process, in place of an error that all have; or a process has
            ended.
    """
    try:
        with _others_are_there():
            yield
    except (DivergedError, StoppedError) as error:
        if PartialState().is_main_process:
            raise
        raise OtherProcessError(0, error.message, exit_code=error.exit_code) from error


@contextmanager
def _others_are_there() -> Iterator[None]:
    """Around what waits for other processes: if one of them has ended, the first one logs it.

    Raises:
        OtherProcessError: One has ended.
    """
    state = PartialState()
    try:
        yield
    except RuntimeError as error:
        if state.num_processes == 1 or not any(sign in str(error) for sign in GONE):
            raise
        if state.is_main_process:
            logger.error(
                "another process has ended; if it did not say why, it was killed, perhaps as memory ran out"
            )
        raise OtherProcessError(None, "another process has ended") from error


def _end(error: Exception) -> tuple[int, str]:
    if isinstance(error, DoratuneError):
        return error.exit_code, error.message
    return 1, f"{type(error).__name__}: {error}"
