"""The training loops of ``doratune bench step``, each as it is used, but for a pause before every step."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from transformers import (
    PreTrainedModel,
    TrainerCallback,
    TrainerControl,
    TrainerState,
    TrainingArguments,
)

from doratune.bench.step.child import StepReport, Trainee
from doratune.bench.step.floor import FrozenStep
from doratune.bench.step.providers import Frozen, Stock
from doratune.bench.step.trainers import doratune_trainer, stock_trainer
from doratune.bench.step.turns import Turn, TurnsOverError
from doratune.memory import held_memory_bytes, peak_memory_bytes
from doratune.peft import enable

Pause = Callable[[float | None], None]
"""Called before a step with the loss of the one before."""


def run(trainee: Trainee, turn: Turn) -> StepReport:
    """Train in this process, one step in each turn, until no turn comes any more."""
    torch.set_num_threads(trainee.threads)

    def pause(loss: float | None) -> None:
        if torch.cuda.is_available():
            torch.cuda.synchronize()  # a step ends when its work is done
        turn.wait(loss)

    with tempfile.TemporaryDirectory(prefix="doratune-") as folder:
        model, loop = _prepare(trainee, Path(folder), pause)
        before = held_memory_bytes()
        with suppress(TurnsOverError):
            loop()
    return StepReport(
        attention=str(model.config._attn_implementation),
        trainable=sum(one.numel() for one in model.parameters() if one.requires_grad),
        before_bytes=before,
        peak_bytes=peak_memory_bytes(),
    )


def _prepare(trainee: Trainee, folder: Path, pause: Pause) -> tuple[PreTrainedModel, Callable[[], object]]:
    """The model, and the loop that trains it or runs it."""
    provider = trainee.provider
    if isinstance(provider, Frozen):
        step = FrozenStep(provider, trainee.model, trainee.case)

        def loop() -> None:
            loss = None
            while True:
                pause(loss)
                loss = step()

        return step.model, loop
    make = stock_trainer if isinstance(provider, Stock) else doratune_trainer
    trainer: Any = make(trainee, provider.method, folder)
    if isinstance(provider, Stock) and provider.enabled:
        enable(trainer.model)
    trainer.add_callback(PauseCallback(pause))
    return trainer.model, trainer.train


class PauseCallback(TrainerCallback):
    """Pauses before each step, when the rows of it have been loaded."""

    def __init__(self, pause: Pause) -> None:
        self._pause = pause
        self._loss: float | None = None

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        """Take note of the step's loss."""
        self._loss = (logs or {})["loss"]

    def on_step_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Pause."""
        self._pause(self._loss)
