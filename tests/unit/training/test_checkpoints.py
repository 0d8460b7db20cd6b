"""Checkpoints: sealed, checked and deleted."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path

import pytest
from transformers import TrainerControl, TrainerState, TrainingArguments

from doratune.errors import DoratuneError, InputError
from doratune.records.storage import write_config
from doratune.training.checkpoints import SEAL_NAME, CheckpointCallback, last_whole, seal


def checkpoint(run: Path, step: int) -> Path:
    folder = run / "checkpoints" / f"checkpoint-{step}"
    (folder / "part").mkdir(parents=True)
    (folder / "optimizer.pt").write_bytes(bytes(range(200)))
    (folder / "part" / "state.json").write_text("{}")
    return folder


def flip(folder: Path) -> None:
    content = bytearray((folder / "optimizer.pt").read_bytes())
    content[100] ^= 1
    (folder / "optimizer.pt").write_bytes(content)


def cut(folder: Path) -> None:
    (folder / "optimizer.pt").write_bytes(bytes(range(100)))


def remove(folder: Path) -> None:
    (folder / "part" / "state.json").unlink()


def unseal(folder: Path) -> None:
    (folder / SEAL_NAME).unlink()


def garble(folder: Path) -> None:
    (folder / SEAL_NAME).write_text('{"xxh3_128": 3')


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        (flip, "optimizer.pt has changed"),
        (cut, "optimizer.pt has changed"),
        (remove, "part/state.json is missing"),
        (unseal, "it was not written completely"),
        (garble, f"{SEAL_NAME} cannot be read"),
    ],
)
def test_a_damaged_checkpoint_is_passed_over_by_name(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, damage: Callable[[Path], None], reason: str
) -> None:
    older, newest = checkpoint(tmp_path, 8), checkpoint(tmp_path, 10)
    for folder in (older, newest):
        seal(folder)
    assert last_whole(tmp_path) == newest and not caplog.text
    damage(newest)
    assert last_whole(tmp_path) == older
    assert f"checkpoint-10 cannot be used: {reason}" in caplog.text and "checkpoint-8 is used" in caplog.text


def test_a_run_does_not_restart_over_damaged_checkpoints(tmp_path: Path) -> None:
    folder = checkpoint(tmp_path, 8)
    seal(folder)
    flip(folder)
    with pytest.raises(InputError, match=r"no checkpoint(.|\n)*checkpoint-8 cannot be used: optimizer.pt"):
        last_whole(tmp_path)


def test_a_run_killed_in_its_first_checkpoint_starts_again(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = checkpoint(tmp_path, 8)
    assert last_whole(tmp_path) is None and "starts again from the first step" in caplog.text
    (folder / "trainer_state.json").write_text("{}")  # as versions before seals left it, or a kill just then
    assert last_whole(tmp_path) == folder and "has no checksums" in caplog.text


def test_no_checkpoint_is_no_damage(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO):
        assert last_whole(tmp_path) is None
    assert not caplog.text


def saved(run: Path, step: int, keep: int, meanwhile: Callable[[Path], object] = bool) -> None:
    arguments = TrainingArguments(output_dir=str(run / "checkpoints"), use_cpu=True)
    state, control = TrainerState(global_step=step, is_world_process_zero=True), TrainerControl()
    callback = CheckpointCallback(run, keep=keep, model="a-model")
    callback.on_train_begin(arguments, state, control)
    meanwhile(run)
    callback.on_save(arguments, state, control)


def test_the_oldest_are_deleted_once_the_newest_is_sealed(tmp_path: Path) -> None:
    write_config(tmp_path, {})
    folders = [checkpoint(tmp_path, step) for step in (8, 9, 10)]
    saved(tmp_path, 10, keep=2)
    assert [folder.exists() for folder in folders] == [False, True, True]
    assert last_whole(tmp_path) == folders[-1]


def test_a_removed_run_directory_ends_training(tmp_path: Path) -> None:
    write_config(tmp_path, {})
    checkpoint(tmp_path, 2)
    with pytest.raises(DoratuneError, match="removed during"):
        saved(tmp_path, 2, keep=2, meanwhile=lambda run: (run / "config.yaml").unlink())
