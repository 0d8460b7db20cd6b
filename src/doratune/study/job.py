"""A job: one run of a study with the evaluations it needs, and which of that is on disk."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from doratune.errors import InputError
from doratune.evaluation.config import EvalConfig
from doratune.methods.former import former_method
from doratune.records.answers import Answers, read_answers
from doratune.records.base_model import check_own_base_model
from doratune.records.layout import (
    ADAPTER_NAME,
    CHECKPOINTS_NAME,
    MODEL_NAME,
    has_diverged,
    is_recorded,
    trained_weights,
)
from doratune.records.run import Evaluation
from doratune.records.storage import read_record
from doratune.records.study import StudyMethod
from doratune.records.weights import check_own_weights
from doratune.training.config import TrainConfig

TOLD_APART = {"seed", "learning_rate", "rank", "alpha", "format"}
"""Settings, with the method, in which the runs of a study differ."""


@dataclass(frozen=True)
class Wanted:
    """An evaluation of one task.

    Attributes:
        task: The task's name; ``config`` has the path of its file if it has one.
        config: The evaluation's configuration.
        asked: Hash of the rows and how they are asked, as in the evaluation's record.
        rows: How many rows are evaluated.
    """

    task: str
    config: EvalConfig
    asked: str
    rows: int

    def found(self) -> Evaluation | None:
        """The evaluation on disk, or None.

        Raises:
            InputError: The record cannot be read, or its evaluation has other rows or another base model.
        """
        folder = self.config.output
        if folder is None or not is_recorded(folder):
            return None
        ours = (self.task, self.config.format, self.config.protocol, self.config.split)
        record = read_record(folder)
        check_own_base_model(record, where=str(folder))
        check_own_weights(record, where=str(folder))
        for one in record.evaluations:
            if (one.task, one.format, one.protocol, one.data.split) == ours:
                self._check_rows(one, folder)
                return one
        return None

    def answers(self) -> Answers | None:
        """The answers on disk, or None.

        Raises:
            InputError: As for ``found``, or the predictions cannot be read or do not match the record.
        """
        found = self.found()
        folder = self.config.output
        return read_answers(folder, found) if found is not None and folder is not None else None

    def _check_rows(self, found: Evaluation, folder: Path) -> None:
        if (found.data.asked, found.limit) != (self.asked, self.config.eval_rows):
            raise InputError(
                f"a finished run was evaluated on other rows of {found.task} than the plan now has",
                where=str(folder),
                got=f"SHA-256 {found.data.asked[:12]}, eval_rows {found.limit}",
                expected=f"SHA-256 {self.asked[:12]}, eval_rows {self.config.eval_rows}",
                fix="give the rows and --eval-rows it was evaluated on, or another --output",
            )


@dataclass(frozen=True)
class Job:
    """The work of one process.

    Attributes:
        stage: "trial": train, and answer the validation rows. "test": train, unless that is done, and answer
            the test rows. "base": answer the test rows with the base model.
        folder: The run directory.
        config: How it is trained; None for the base model.
        wanted: The evaluations.
        method: The method trained with, or "base".
        text: The evaluation on the built-in text; None for a trial.
    """

    stage: Literal["trial", "test", "base"]
    folder: Path
    config: TrainConfig | None
    wanted: tuple[Wanted, ...]
    method: StudyMethod | Literal["base"]
    text: EvalConfig | None = None

    @property
    def key(self) -> str:
        """Identifies the job; the same run may first be a trial and later be tested."""
        return f"{self.folder.name}, {self.stage}"

    @property
    def label(self) -> str:
        """A description for messages."""
        config = self.config
        return f"{self.method}, rate {config.learning_rate:g}, seed {config.seed}" if config else "base"

    def diverged(self) -> bool:
        """Whether its training is known to diverge, so that there is nothing to evaluate."""
        return self.config is not None and has_diverged(self.folder)

    def trained(self) -> bool:
        """Whether nothing is left to train.

        Raises:
            InputError: The folder holds the record of another run.
        """
        if not is_recorded(self.folder):
            return self.config is None or self.diverged()
        record = read_record(self.folder)
        expected = self.config.model_dump(include=TOLD_APART) if self.config else {}
        expected = {key: value for key, value in expected.items() if key in record.config}
        expected["method"] = self.method
        found = {**record.config, "method": former_method(record.method, record.config)}
        if wrong := [key for key in expected if found[key] != expected[key]]:
            raise InputError(
                "the folder of a study's run holds another run",
                where=str(self.folder),
                got=", ".join(f"{key} {found[key]}" for key in wrong),
                expected=", ".join(f"{key} {expected[key]}" for key in wrong),
                fix="move it back to where it was; a run that is missing is trained again",
            )
        return True

    def left(self) -> list[Wanted]:
        """The evaluations that are not on disk.

        Raises:
            InputError: A record cannot be read, or has other rows.
        """
        return [] if self.diverged() else [one for one in self.wanted if one.found() is None]

    def text_left(self) -> bool:
        """Whether the built-in text is not scored yet. A run without weights is not trained again for it."""
        if self.text is None or self.diverged() or not self.has_weights():
            return False
        return not is_recorded(self.folder) or read_record(self.folder).text is None

    def done(self) -> bool:
        """Whether nothing is left to do.

        Raises:
            InputError: As ``trained`` and ``left``.
        """
        return self.trained() and not self.left() and not self.text_left()

    def has_weights(self) -> bool:
        """Whether there are weights to evaluate."""
        return self.config is None or trained_weights(self.folder, self.method) is not None


def drop_weights(run: Path) -> None:
    """Delete the weights and checkpoints of a run; its record, metrics and predictions stay."""
    for name in (ADAPTER_NAME, MODEL_NAME, CHECKPOINTS_NAME):
        shutil.rmtree(run / name, ignore_errors=True)
