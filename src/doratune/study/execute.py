"""Carries out a job in this process, continuing where an earlier process stopped.

Several processes may do so together. The first of them decides what is left, as it is the one that writes.
"""

from __future__ import annotations

import logging
import os
import shutil
import sys
import time
import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Literal

from doratune.errors import DivergedError, DoratuneError, OtherProcessError, StoppedError
from doratune.evaluation.config import EvalConfig
from doratune.records.layout import VALIDATION_NAME, is_started
from doratune.records.lock import locked
from doratune.records.storage import write_config
from doratune.study.job import Job, Wanted

logger = logging.getLogger(__name__)

LOG_NAME = "log.txt"


@dataclass(frozen=True)
class Outcome:
    """How a job ended.

    Attributes:
        seconds: Wall time.
        error: What went wrong; None if nothing did.
        interrupted: Whether a signal stopped it.
        diverged: Whether its training diverged, which is a result and not repeated.
    """

    seconds: float
    error: str | None = None
    interrupted: bool = False
    diverged: bool = False

    @property
    def ending(self) -> str:
        """How it ended, in a word."""
        if self.interrupted:
            return "interrupted"
        if self.error is not None:
            return "failed"
        return "diverged" if self.diverged else "done"


def carry_out(job: Job) -> Outcome:
    """Do what is left of a job; its output goes to log.txt in its run directory.

    Returns:
        How it ended. Errors are returned, not raised, so that their message survives in another process.
    """
    with locked(job.folder, wait=True), printing_to(job.folder / LOG_NAME):
        return attempt(job)


def attempt(job: Job) -> Outcome:
    """Do what is left of a job, together with the other processes of a launch.

    Returns:
        How it ended.

    Raises:
        OtherProcessError: Another process of the launch failed, and has the message.
    """
    started = time.perf_counter()
    error, interrupted, diverged = None, False, False
    try:
        _train(job)
        _evaluate(job)
    except KeyboardInterrupt:
        interrupted = True
    except OtherProcessError:
        raise
    except DivergedError as raised:
        diverged = True
        print(raised.message)
    except DoratuneError as raised:
        interrupted = isinstance(raised, StoppedError)
        error = raised.message
    except Exception as raised:  # an error in a library ends only this run, and is reported
        traceback.print_exc()
        error = f"{type(raised).__name__}: {raised}\n  where: {job.folder / LOG_NAME}"
    seconds = time.perf_counter() - started
    return Outcome(seconds, None if interrupted else error, interrupted, diverged)


def _train(job: Job) -> None:
    """Train the run or resume it; train it again if it is finished but its weights are gone."""
    from doratune.processes import in_first, join_processes
    from doratune.training.train import train

    join_processes()
    how = in_first(partial(_left_to_train, job))
    if job.config is not None and how is not None:
        train(job.config, resume=how == "resume", overwrite=how == "again")


def _left_to_train(job: Job) -> Literal["start", "resume", "again"] | None:
    """What is left of the training; None if nothing is."""
    if job.config is None:
        return None
    if job.trained():
        if not job.left() or job.has_weights():
            return None
        logger.warning("the weights of %s are gone, so it is trained again", job.folder.name)
        shutil.rmtree(job.folder / VALIDATION_NAME, ignore_errors=True)  # the old weights' answers
        return "again"
    resume = is_started(job.folder)
    if resume:  # the address says that it is the same run; only its paths may have changed
        write_config(job.folder, job.config.model_dump(mode="json"))
    return "resume" if resume else "start"


def _evaluate(job: Job) -> None:
    from doratune.evaluation.evaluate import evaluate
    from doratune.models.load import on_cpu
    from doratune.processes import in_first

    for config in in_first(lambda: merged(job.left(), job.text if job.text_left() else None)):
        # The plan's dtype is for training. On a CPU the base is evaluated in float32, as its runs are.
        evaluate(config.model_copy(update={"dtype": "auto"}) if on_cpu() else config)


def merged(left: Sequence[Wanted], text: EvalConfig | None = None) -> list[EvalConfig]:
    """Merge evaluations that differ only in their task, since each evaluation loads the model.

    Args:
        left: The evaluations.
        text: The evaluation on the built-in text, which joins another of the same run.
    """
    found: dict[str, EvalConfig] = {}
    for config in (wanted.config for wanted in left):
        key = config.model_dump_json(exclude={"task"})
        same = found.get(key)
        tasks = [*(same.task if same else []), *config.task]
        found[key] = config.model_copy(update={"task": tasks})
    configs = list(found.values())
    if text is None:
        return configs
    for place, config in enumerate(configs):
        if (config.target, config.output) == (text.target, text.output):
            configs[place] = config.model_copy(update={"text": True})
            return configs
    return [*configs, text]


@contextmanager
def printing_to(path: Path) -> Iterator[None]:
    """Append all output of this process and those it starts, including that of libraries, to a file."""
    sys.stdout.flush()
    sys.stderr.flush()
    kept = os.dup(1), os.dup(2)
    with path.open("a", encoding="utf-8") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
        try:
            yield
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            for number, copy in zip((1, 2), kept, strict=True):
                os.dup2(copy, number)
                os.close(copy)
