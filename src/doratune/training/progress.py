"""Progress of a run: a bar in a terminal, otherwise a line per minute."""

from __future__ import annotations

import sys
import time
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from doratune.duration import about, duration
from doratune.training.callbacks import MetricsCallback

EVERY = 60.0
"""Seconds between lines without a terminal, and until a terminal shows the measured time."""


class ProgressCallback(TrainerCallback):
    """Shows loss, learning rate, tokens per second and the time left, from this process's speed so far.

    Args:
        metrics: The source of the figures; it is called first.
        label: The name of what is trained.
    """

    def __init__(self, metrics: MetricsCallback, label: str) -> None:
        self._metrics = metrics
        self._label = label
        self._console = Console(file=sys.stderr, markup=False, emoji=False)
        self._bar: Progress | None = None
        self._task: Any = None
        self._began = self._shown = 0.0
        self._before = self._tokens = 0
        self._measured = False

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Open the bar."""
        self._began = self._shown = time.monotonic()
        self._before, self._tokens, self._measured = state.global_step, self._metrics.tokens, False
        if not state.is_world_process_zero or not self._console.is_terminal:
            return
        self._bar = Progress(
            TextColumn("{task.description}", markup=False),
            BarColumn(),
            TextColumn("{task.completed}/{task.total} steps  {task.fields[status]}", markup=False),
            console=self._console,
        )
        self._task = self._bar.add_task(
            self._label, total=state.max_steps, completed=state.global_step, status=""
        )
        self._bar.start()

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        """Show the newest figures."""
        if not state.is_world_process_zero or "loss" not in (logs or {}):
            return
        now = time.monotonic()
        seconds, steps = now - self._began, state.global_step - self._before
        if not steps:
            return
        left = seconds / steps * (state.max_steps - state.global_step)
        status = (
            f"loss {self._metrics.loss:.3f}  rate {(logs or {}).get('learning_rate', 0.0):.1e}  "
            f"{(self._metrics.tokens - self._tokens) / max(seconds, 1e-9):,.0f} tokens/s"
        )
        if self._bar is not None:
            status = f"{status}  {duration(left)} left"
            self._bar.update(self._task, completed=state.global_step, status=status)
            if now - self._shown >= EVERY and not self._measured:
                self._measured = True
                self._say(f"measured: {seconds / steps:.2g} s per step, {about(left)} left")
            return
        last = state.global_step == state.max_steps
        if now - self._shown >= EVERY or last:
            self._shown = now
            tail = "" if last else f"  {about(left)} left"
            self._say(f"{self._label}: step {state.global_step}/{state.max_steps}  {status}{tail}")

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Close the bar."""
        if self._bar is not None:
            self._bar.stop()
            self._bar = None

    def _say(self, line: str) -> None:
        self._console.print(line, highlight=False, soft_wrap=True)
