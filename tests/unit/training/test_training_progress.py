"""What a run shows of its progress, with a made-up clock."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from rich.console import Console
from transformers import TrainerControl, TrainerState

from doratune.training import progress
from doratune.training.callbacks import MetricsCallback
from doratune.training.progress import ProgressCallback


def trained(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], folder: Path, *, terminal: bool
) -> str:
    """What ten steps of 25 s print."""
    clock = [100.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: clock[0])
    metrics, args = MetricsCallback(folder), SimpleNamespace()
    shown = ProgressCallback(metrics, "dora")
    if terminal:
        shown._console = Console(stderr=True, force_terminal=True, width=120)
    state: Any = TrainerState(max_steps=10, is_world_process_zero=True)
    shown.on_train_begin(args, state, TrainerControl())  # pyright: ignore[reportArgumentType]
    for step in range(1, 11):
        clock[0] += 25.0
        state.global_step, metrics.tokens, metrics.loss = step, 1000 * step, 2.0 / step
        shown.on_log(args, state, TrainerControl(), {"loss": metrics.loss, "learning_rate": 2e-4})  # pyright: ignore[reportArgumentType]
    shown.on_train_end(args, state, TrainerControl())  # pyright: ignore[reportArgumentType]
    return capsys.readouterr().err


def test_a_line_per_minute_without_a_terminal(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    lines = trained(monkeypatch, capsys, tmp_path, terminal=False).splitlines()
    assert [line.split()[2] for line in lines] == ["3/10", "6/10", "9/10", "10/10"]
    assert lines[0] == "dora: step 3/10  loss 0.667  rate 2.0e-04  40 tokens/s  about 3 min left"
    assert lines[-1] == "dora: step 10/10  loss 0.200  rate 2.0e-04  40 tokens/s"


def test_a_bar_and_the_measured_time_in_a_terminal(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    text = trained(monkeypatch, capsys, tmp_path, terminal=True)
    assert text.count("measured: 25 s per step, about 3 min left") == 1
    for part in ("10/10", "steps", "loss 0.200", "rate 2.0e-04", "40 tokens/s", "0.0 s left"):
        assert part in text, part
