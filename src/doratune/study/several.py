"""Carries out a job in several processes on one machine, which PyTorch's elastic launcher starts.

The process that calls this only launches and waits. The first of those that it starts writes to the run
directory, and so holds its lock.
"""

from __future__ import annotations

import os
import pickle
import signal
import sys
import tempfile
import time
import uuid
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

from doratune.errors import DoratuneError, OtherProcessError
from doratune.launch import LINGERING, launched
from doratune.records.lock import locked
from doratune.study.execute import LOG_NAME, Outcome, attempt, printing_to
from doratune.study.job import Job

PATIENCE_SECONDS = 600
"""How long a run may take to save a checkpoint after SIGTERM before it is killed; torchrun gives it 30."""


class LostProcessError(DoratuneError):
    """A process of a run was killed from outside; the run can resume from its last checkpoint."""


def carry_out_in_several(
    job: Job,
    processes: int,
    initializer: Callable[[], None] | None,
    *,
    threads: int | None,
    forward_ctrl_c: bool,
) -> Outcome:
    """Do what is left of a job in several processes; their output goes to log.txt in its run directory.

    Args:
        job: The job.
        processes: How many.
        initializer: Called first in each of them.
        threads: Threads of each; None: as many as its libraries choose.
        forward_ctrl_c: Pass Ctrl-C on to the processes; a terminal sends it to them itself.

    Returns:
        How it ended.

    Raises:
        LostProcessError: One of them was killed.
    """
    from torch.distributed.elastic.multiprocessing import DefaultLogsSpecs, SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    started = time.perf_counter()
    interrupted: list[int] = []
    signal.signal(signal.SIGINT, lambda number, _: interrupted.append(number))
    os.environ["TORCH_ELASTIC_SHUTDOWN_TIMEOUT"] = str(PATIENCE_SECONDS)
    if threads is not None:
        os.environ["OMP_NUM_THREADS"] = str(threads)
    job.folder.mkdir(parents=True, exist_ok=True)
    with printing_to(job.folder / LOG_NAME), tempfile.TemporaryDirectory(prefix="doratune-") as scratch:
        config = LaunchConfig(
            min_nodes=1,
            max_nodes=1,
            nproc_per_node=processes,
            run_id=uuid.uuid4().hex,
            rdzv_backend="c10d",
            rdzv_endpoint="localhost:0",  # a port that is free
            local_addr="localhost",
            max_restarts=0,
            logs_specs=DefaultLogsSpecs(log_dir=scratch),
            signals_to_handle="SIGTERM,SIGINT" if forward_ctrl_c else "SIGTERM",
        )
        try:
            outcome = elastic_launch(config, _work)(job, initializer, Path(scratch))[0]
        except SignalException:
            outcome = Outcome(0.0, interrupted=True)
        except ChildFailedError as error:
            outcome = _failure(error, Path(scratch), job, interrupted=bool(interrupted))
    return replace(outcome, seconds=time.perf_counter() - started)


def _work(job: Job, initializer: Callable[[], None] | None, scratch: Path) -> Outcome:
    """Do this process's part.

    An error that all processes know of is left to the one that has the message. That one ends with a code,
    upon which the launcher ends the others, as they may be waiting for it.
    """
    launch = launched()
    try:
        if initializer is not None:
            initializer()
        with locked(job.folder, wait=True) if launch.speaks else nullcontext():
            outcome = attempt(job)
    except OtherProcessError:
        time.sleep(LINGERING)
        sys.exit(1)
    except KeyboardInterrupt:
        outcome = Outcome(0.0, interrupted=True)
    if outcome.ending != "done":
        _outcome_file(scratch, launch.index).write_bytes(pickle.dumps(outcome))
        sys.exit(1)
    return outcome


def _failure(error: Any, scratch: Path, job: Job, *, interrupted: bool) -> Outcome:
    """How a run ended in which a process did not end well.

    Raises:
        LostProcessError: It was killed.
    """
    index, failure = error.get_first_failure()
    files = [_outcome_file(scratch, index), *sorted(scratch.glob("*.outcome"))]
    file = next((one for one in files if one.is_file()), None)
    if interrupted:
        return Outcome(0.0, interrupted=True)
    if failure.exitcode < 0:
        raise LostProcessError(
            f"process {index} of the run was killed, perhaps because memory ran out",
            where=str(job.folder / LOG_NAME),
            got=failure.signal_name(),
            fix="start it again; it resumes from the last checkpoint",
        )
    if file is not None:
        return pickle.loads(file.read_bytes())
    return Outcome(
        0.0, f"process {index} of the run ended with {failure.exitcode}\n  where: {job.folder / LOG_NAME}"
    )


def _outcome_file(scratch: Path, index: int) -> Path:
    return scratch / f"{index}.outcome"
