"""Metrics, and an orderly stop on Ctrl-C or SIGTERM during training."""

from __future__ import annotations

import json
import signal
import sys
import time
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from doratune.records.base import finite_or_none
from doratune.records.files import drop_half_line, read_jsonl, write_jsonl_atomic
from doratune.records.layout import METRICS_NAME
from doratune.training.batches import RowBatches

LOGGED = ("loss", "learning_rate", "grad_norm", "epoch", "eval_loss", "skipped")


class MetricsCallback(TrainerCallback):
    """Appends each log to metrics.jsonl as a line, and continues the counts of a resumed run.

    Of several processes the first writes, and has the counts of the whole run.

    Attributes:
        seconds: Wall time of the training loop so far, with that of earlier processes of a resumed run.
        cpu_seconds: Processor time of this process in the loop so far, likewise; None if an older version ran
            a part of it.
        tokens: Tokens trained on so far, padding not counted.
        loss: The last training loss.
        skipped: Optimizer steps skipped so far, because their loss or gradient was not finite.
    """

    def __init__(self, folder: Path) -> None:
        self.path = folder / METRICS_NAME
        self.seconds = 0.0
        self.cpu_seconds: float | None = 0.0
        self.tokens = 0
        self.loss = float("nan")
        self.skipped = 0
        self._before = 0.0
        self._cpu_before: float | None = 0.0
        self._started = self._cpu_started = 0.0

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Drop the lines that a killed process wrote after the checkpoint that training resumes from."""
        self._started, self._cpu_started = time.perf_counter(), time.process_time()
        if not state.is_world_process_zero:
            return
        kept = []
        if self._resumes(state):
            drop_half_line(self.path)
            # Older versions wrote a bare NaN, which is not JSON.
            kept = [_strict(line) for line in read_jsonl(self.path) if line["step"] <= state.global_step]
        write_jsonl_atomic(self.path, kept)
        training = [line for line in kept if "loss" in line]
        if training:
            self._before, self.tokens = training[-1]["seconds"], training[-1]["tokens"]
            self._cpu_before = training[-1].get("cpu_seconds")
            self.loss = float("nan") if training[-1]["loss"] is None else training[-1]["loss"]
        self.skipped = sum("skipped" in line for line in training)
        self.seconds, self.cpu_seconds = self._before, self._cpu_before

    def _resumes(self, state: TrainerState) -> bool:
        return state.global_step > 0 and self.path.exists()

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        """Write the line."""
        state.log_history.clear()  # metrics.jsonl has it; here it would grow in memory and in each checkpoint
        logs = logs or {}
        if "loss" not in logs and "eval_loss" not in logs:
            return
        self.seconds = self._before + time.perf_counter() - self._started
        line: dict[str, Any] = {"step": state.global_step}
        line.update({key: logs[key] for key in LOGGED if key in logs})
        line["seconds"] = round(self.seconds, 3)
        if self._cpu_before is not None:
            self.cpu_seconds = self._cpu_before + time.process_time() - self._cpu_started
            line["cpu_seconds"] = round(self.cpu_seconds, 3)
        if "loss" in logs:
            self.tokens += int(logs["row_tokens"])
            self.loss = logs["loss"]
            self.skipped += "skipped" in logs
            line["tokens"] = self.tokens
        if state.is_world_process_zero:
            with self.path.open("a", encoding="utf-8") as file:
                file.write(json.dumps(_strict(line), allow_nan=False) + "\n")


def _strict(line: dict[str, Any]) -> dict[str, Any]:
    """The line with NaN and infinities, which JSON cannot hold, as null."""
    return {key: finite_or_none(value) for key, value in line.items()}


class EpochCallback(TrainerCallback):
    """Has rows drawn for the epoch that begins, also for one that training resumes in the middle of.

    accelerate wraps a sampler, in a resumed epoch twice, and which wrapper passes an epoch on depends on the
    releases of accelerate and transformers.

    Args:
        batches: The sampler.
    """

    def __init__(self, batches: RowBatches) -> None:
        self._batches = batches

    def on_epoch_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Set the epoch."""
        self._batches.set_epoch(state.global_step // self._batches.steps)


class StopCallback(TrainerCallback):
    """On Ctrl-C or SIGTERM, saves a checkpoint and stops after the step; a second Ctrl-C stops at once.

    A signal to one of several processes stops all of them after the same step.

    Attributes:
        number: The signal that ended training, the same in every process; 0 if none did.
    """

    def __init__(self) -> None:
        self.number = 0
        self._received = 0
        self._first = True
        self._previous: dict[int, Any] = {}

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Take over the signals."""
        self._first = state.is_world_process_zero
        self._previous = {one: signal.signal(one, self._on_signal) for one in (signal.SIGINT, signal.SIGTERM)}

    def _on_signal(self, number: int, frame: Any) -> None:
        told = self._received or self.number
        self._received = number
        if number == signal.SIGINT:
            signal.signal(number, self._previous[number])
            hint = "; press Ctrl-C again to stop at once"
        else:
            hint = " (SIGTERM)"
        if self._first and not told:
            print(f"\nstopping after this step{hint}", file=sys.stderr)

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Save and stop after the same step in every process."""
        self.number = _largest(self._received)
        if self.number and state.global_step < state.max_steps:
            if self._first and not self._received:
                print("\nstopping after this step (signal to another process)", file=sys.stderr)
            control.should_save = True
            control.should_training_stop = True

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Restore the signal handlers."""
        self.give_back()

    def give_back(self) -> None:
        """Restore the signal handlers from before training."""
        for number, handler in self._previous.items():
            signal.signal(number, handler)


def _largest(number: int) -> int:
    """The largest of the numbers in all processes of a training run."""
    state = PartialState()
    if state.num_processes == 1:
        return number
    found = torch.tensor(number, device=state.device)
    torch.distributed.all_reduce(found, op=torch.distributed.ReduceOp.MAX)
    return int(found)
