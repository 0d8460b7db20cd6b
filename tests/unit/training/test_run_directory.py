"""Which folders training writes to."""

from __future__ import annotations

from pathlib import Path

import pytest

from doratune.errors import InputError
from doratune.training.config import TrainConfig
from doratune.training.run_directory import read_config, read_settings, refuse_foreign, refuse_taken


def test_the_empty_folder_of_a_process_killed_at_its_start_is_no_run(tmp_path: Path) -> None:
    folder = tmp_path / "checkpoints"
    folder.mkdir()
    refuse_taken(tmp_path)
    (folder / "checkpoint-2").mkdir()
    with pytest.raises(InputError, match=r"already holds a run(.|\n)*checkpoints"):
        refuse_taken(tmp_path)


def test_overwriting_removes_only_a_run(tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()
    config = TrainConfig(task=["sample-boolq"], output=tmp_path)
    with pytest.raises(InputError, match=r"not of a run(.|\n)*with model"):
        refuse_foreign(config)
    (tmp_path / "config.yaml").touch()
    refuse_foreign(config)
    for flag, reads in (
        ("--model", {"model": str(tmp_path / "model")}),
        ("--data", {"data": tmp_path / "model"}),
    ):
        with pytest.raises(InputError, match="would remove what the run reads") as caught:
            refuse_foreign(config.model_copy(update=reads))
        assert caught.value.where == flag


@pytest.mark.parametrize("text", [b"seed: [1", b"\xff", b"- a", b"seed: 1\nseed: 2"])
def test_a_configuration_that_cannot_be_read_is_one_message(tmp_path: Path, text: bytes) -> None:
    (tmp_path / "config.yaml").write_bytes(text)
    for read in (read_config, read_settings):
        with pytest.raises(InputError, match="configuration"):
            read(tmp_path)


def test_a_configuration_is_read_as_presets_are(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text("learning_rate: 1e-3\nmethod: [dora]\n")
    with pytest.raises(InputError, match="method"):
        read_settings(path)
    path.write_text("learning_rate: 1e-3\n")
    assert read_settings(path)["learning_rate"] == 1e-3
