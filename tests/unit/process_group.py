"""Several processes that work together, as a launcher starts them; the parent holds their meeting place."""

from __future__ import annotations

import os
import pickle
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

from quick_start import quick_context
from torch.distributed import TCPStore


def in_processes(
    count: int, work: Callable[..., Any], *arguments: Any, folder: Path, seconds: float = 300
) -> list[Any]:
    """Call a function in several processes at once, with what ``torchrun`` sets in the environment.

    Args:
        count: The number of processes; a single one is started as without a launcher.
        work: A function of a module that the processes can import.
        *arguments: Its arguments; they and its results are pickled.
        folder: Where the results are written.
        seconds: How long the processes may take.

    Returns:
        The results, by process.

    Raises:
        AssertionError: A process failed, or takes too long.
    """
    meeting = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    launch = {
        "WORLD_SIZE": str(count),
        "LOCAL_WORLD_SIZE": str(count),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(meeting.port),
        "TORCHELASTIC_RUN_ID": "tests",
        "TORCHELASTIC_USE_AGENT_STORE": "True",
        "OMP_NUM_THREADS": "1",
    }
    start = quick_context("spawn")
    folder.mkdir(parents=True, exist_ok=True)
    files = [folder / f"{index}.pickle" for index in range(count)]
    processes = [
        start.Process(
            target=_child,
            args=(file, {**launch, "RANK": str(index), "LOCAL_RANK": str(index)}, work, arguments)
            if count > 1
            else (file, {}, work, arguments),
        )
        for index, file in enumerate(files)
    ]
    for process in processes:
        process.start()
    try:
        for process in processes:
            process.join(seconds)
        ends = [pickle.loads(file.read_bytes()) if file.exists() else None for file in files]
        for index, (process, end) in enumerate(zip(processes, ends, strict=True)):
            assert process.exitcode == 0 and end is not None, (
                f"process {index} ended with {process.exitcode}: {end and end[1]}"
            )
        return [result for result, _ in ends]
    finally:
        for process in processes:
            process.kill()


def _child(file: Path, launch: dict[str, str], work: Callable[..., Any], arguments: tuple[Any, ...]) -> None:
    os.environ.update(launch)
    import torch

    torch.set_num_threads(1)
    result, trace = None, ""
    try:
        result = work(*arguments)
    except BaseException:
        trace = traceback.format_exc()
        raise
    finally:
        file.write_bytes(pickle.dumps((result, trace)))
