"""Signals while training, and files that a killed process leaves half written."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest
from transformers import TrainerControl, TrainerState, TrainingArguments

from doratune.errors import StoppedError
from doratune.records.files import drop_half_line, read_jsonl
from doratune.training.callbacks import StopCallback


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_saves_and_stops(tmp_path: Path, number: signal.Signals, code: int) -> None:
    before = signal.getsignal(number)
    arguments = TrainingArguments(output_dir=str(tmp_path), use_cpu=True)
    state, control, callback = TrainerState(global_step=3, max_steps=9), TrainerControl(), StopCallback()
    callback.on_train_begin(arguments, state, control)
    try:
        callback.on_step_end(arguments, state, control)
        assert not control.should_save and not control.should_training_stop
        os.kill(os.getpid(), number)
        callback.on_step_end(arguments, state, control)
        assert control.should_save and control.should_training_stop
        assert StoppedError(callback.number, "stopped").exit_code == code
    finally:
        callback.on_train_end(arguments, state, control)
    assert signal.getsignal(number) == before


def test_a_second_ctrl_c_is_left_to_python(tmp_path: Path) -> None:
    arguments = TrainingArguments(output_dir=str(tmp_path), use_cpu=True)
    callback = StopCallback()
    callback.on_train_begin(arguments, TrainerState(max_steps=9), TrainerControl())
    try:
        os.kill(os.getpid(), signal.SIGINT)
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)
    finally:
        callback.give_back()


def test_half_a_line_is_cut_off(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 1}\n{"step": 2}\n{"st', encoding="utf-8")
    drop_half_line(path)
    assert read_jsonl(path) == [{"step": 1}, {"step": 2}]
    path.write_text('{"st', encoding="utf-8")
    drop_half_line(path)
    assert read_jsonl(path) == []
