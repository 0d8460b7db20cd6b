"""A job: one run of a study, with the evaluations that are wanted of it, and what of that is on disk."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from doratune.errors import InputError
from doratune.evaluation.config import EvalConfig
from doratune.records.answers import Answers, read_answers
from doratune.records.base_model import check_own_base_model
from doratune.records.layout import (
    ADAPTER_NAME,
    CHECKPOINTS_NAME,
    MODEL_NAME,
    has_diverged,
    is_recorded,
    read_record,
    trained_weights,
)
from doratune.records.run import Evaluation
from doratune.records.study import StudyMethod
from doratune.records.weights import check_own_weights
from doratune.training.config import TrainConfig

TOLD_APART = {"seed", "learning_rate", "rank", "alpha", "format", "norm_gradient"}
"""Settings, with the method, in which the runs of a study differ."""


@dataclass(frozen=True)
class Wanted:
    """An evaluation of one task.

    Attributes:
        config: How it is made.
        sha256: Of the rows, as the evaluation's record will give it.
        rows: How many are evaluated.
    """

    config: EvalConfig
    sha256: str
    rows: int

    def found(self) -> Evaluation | None:
        """The evaluation on disk, or None.

        Raises:
            InputError: The record cannot be read, or the evaluation there is of other rows or on another
                base model.
        """
        folder = self.config.output
        if folder is None or not is_recorded(folder):
            return None
        ours = (self.config.task[0], self.config.format, self.config.protocol, self.config.split)
        record = read_record(folder)
        check_own_base_model(record, where=str(folder))
        check_own_weights(record, where=str(folder))
        for one in record.evaluations:
            if (one.task, one.format, one.protocol, one.data.split) == ours:
                self._check_rows(one, folder)
                return one
        return None

    def answers(self) -> Answers | None:
        """What each row counts, or None where nothing is on disk.

        Raises:
            InputError: As ``found``, or the predictions cannot be read or do not match the record.
        """
        found = self.found()
        folder = self.config.output
        return read_answers(folder, found) if found is not None and folder is not None else None

    def _check_rows(self, found: Evaluation, folder: Path) -> None:
        if (found.data.sha256, found.limit) != (self.sha256, self.config.limit):
            raise InputError(
                f"a finished run was evaluated on other rows of {found.task} than the plan has now",
                where=str(folder),
                got=f"SHA-256 {found.data.sha256[:12]}, limit {found.limit}",
                expected=f"SHA-256 {self.sha256[:12]}, limit {self.config.limit}",
                fix="give the rows and limit it was evaluated on, or another --output",
            )


@dataclass(frozen=True)
class Job:
    """What one process does.

    Attributes:
        stage: "trial": train, and answer the validation rows. "test": train, if that is not done, and answer
            the test rows. "base": answer the test rows with the model as it is.
        folder: The run directory.
        config: How it is trained; None for the base model.
        wanted: The evaluations.
        method: What is trained, or "base".
    """

    stage: Literal["trial", "test", "base"]
    folder: Path
    config: TrainConfig | None
    wanted: tuple[Wanted, ...]
    method: StudyMethod | Literal["base"]

    @property
    def key(self) -> str:
        """Tells jobs apart; the same run may be a trial first and be tested later."""
        return f"{self.folder.name}, {self.stage}"

    @property
    def label(self) -> str:
        """What it is, for people."""
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
        expected["method"] = self.config.method if self.config else "base"
        found = {**record.config, "method": record.method}
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
            InputError: A record cannot be read, or is of other rows.
        """
        return [] if self.diverged() else [one for one in self.wanted if one.found() is None]

    def done(self) -> bool:
        """Whether nothing is left to do.

        Raises:
            InputError: As ``trained`` and ``left``.
        """
        return self.trained() and not self.left()

    def has_weights(self) -> bool:
        """Whether there is something to evaluate."""
        return self.config is None or trained_weights(self.folder, self.config.method) is not None


def drop_weights(run: Path) -> None:
    """Delete the weights and checkpoints of a run; its record, metrics and predictions stay."""
    for name in (ADAPTER_NAME, MODEL_NAME, CHECKPOINTS_NAME):
        shutil.rmtree(run / name, ignore_errors=True)
