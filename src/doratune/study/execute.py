"""Carries out a job in this process, continuing where an earlier process stopped."""

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
from pathlib import Path

from doratune.errors import DivergedError, DoratuneError, StoppedError
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
    started = time.perf_counter()
    error, interrupted, diverged = None, False, False
    with locked(job.folder, wait=True), _printing_to(job.folder / LOG_NAME):
        try:
            _train(job)
            _evaluate(job)
        except KeyboardInterrupt:
            interrupted = True
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
    from doratune.training.train import train

    if job.config is None:
        return
    if job.trained():
        if job.left() and not job.has_weights():
            logger.warning("the weights of %s are gone, so it is trained again", job.folder.name)
            shutil.rmtree(job.folder / VALIDATION_NAME, ignore_errors=True)  # the old weights' answers
            train(job.config, overwrite=True)
        return
    resume = is_started(job.folder)
    if resume:  # the address says that it is the same run; only its paths may have changed
        write_config(job.folder, job.config.model_dump(mode="json"))
    train(job.config, resume=resume)


def _evaluate(job: Job) -> None:
    from doratune.evaluation.evaluate import evaluate
    from doratune.models.load import on_cpu

    for config in together(job.left()):
        # The plan's dtype is for training. On a CPU the base is evaluated in float32, as its runs are.
        evaluate(config.model_copy(update={"dtype": "auto"}) if on_cpu() else config)


def together(left: Sequence[Wanted]) -> list[EvalConfig]:
    """Merge evaluations that differ only in their task, since each evaluation loads the model."""
    found: dict[str, EvalConfig] = {}
    for config in (wanted.config for wanted in left):
        key = config.model_dump_json(exclude={"task"})
        same = found.get(key)
        tasks = [*(same.task if same else []), *config.task]
        found[key] = config.model_copy(update={"task": tasks})
    return list(found.values())


@contextmanager
def _printing_to(path: Path) -> Iterator[None]:
    """Append all output of this process, including that of libraries, to a file."""
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
