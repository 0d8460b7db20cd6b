"""Folders that appear whole or not at all, and safetensors written one tensor at a time."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file, safe_open

from doratune.errors import InputError, StoppedError
from doratune.serving import files
from doratune.serving.files import TensorFile, stage


def names(folder: Path) -> list[str]:
    return sorted(one.name for one in folder.iterdir())


def test_tensors_are_read_as_they_were_written(tmp_path: Path) -> None:
    tensors = {
        "mask": torch.tensor([True]),
        "half": torch.randn(3, 5).bfloat16(),
        "transposed": torch.randn(4, 3).T,
        "scalar": torch.tensor(3.5, dtype=torch.float16),
        "empty": torch.zeros(0, 3),
        "ids": torch.arange(3),
    }
    path = tmp_path / "model.safetensors"
    with TensorFile(path, {name: (one.dtype, tuple(one.shape)) for name, one in tensors.items()}) as file:
        for name in file.names:
            file.write(name, tensors[name])
    found = load_file(path)
    assert found.keys() == tensors.keys()
    assert all(found[name].equal(one) and found[name].dtype == one.dtype for name, one in tensors.items())
    with safe_open(path, framework="pt") as handle:
        assert handle.metadata() == {"format": "pt"}  # transformers wants it


def test_a_tensor_that_was_not_announced_is_an_error(tmp_path: Path) -> None:
    with (
        pytest.raises(ValueError, match="not the tensor"),
        TensorFile(tmp_path / "a", {"one": (torch.float32, (2,))}) as file,
    ):
        file.write("one", torch.zeros(3))
    with (
        pytest.raises(ValueError, match="not written"),
        TensorFile(tmp_path / "b", {"one": (torch.float32, (2,))}),
    ):
        pass


def test_the_folder_appears_at_the_end(tmp_path: Path) -> None:
    output = tmp_path / "new" / "merged"
    with stage(output, size=10) as place:
        (place.folder / "file").write_text("x")
        assert not output.exists() and place.folder.parent == output.parent
    assert (output / "file").read_text() == "x" and names(output.parent) == ["merged"]
    with pytest.raises(InputError, match="not empty") as caught, stage(output, size=10):
        pass
    assert "remove" not in caught.value.message, "it may be the run itself, or a folder around it"


@pytest.mark.parametrize("how", ["error", "interrupt", "term"])
def test_nothing_is_left_of_what_was_not_finished(how: str, tmp_path: Path) -> None:
    kinds = {"error": OSError, "interrupt": KeyboardInterrupt, "term": StoppedError}
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(kinds[how]) as caught, stage(tmp_path / "new" / "merged", size=10) as place:
        (place.folder / "file").write_text("x")
        if how == "term":
            os.kill(os.getpid(), signal.SIGTERM)
        raise kinds[how]
    assert names(tmp_path) == [] and signal.getsignal(signal.SIGTERM) is before
    assert getattr(caught.value, "exit_code", 143) == 143


def test_a_small_disk_is_refused_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(files, "ROOM", 0)
    monkeypatch.setattr(files.shutil, "disk_usage", lambda _: SimpleNamespace(free=5_242_880))
    with (
        pytest.raises(InputError, match="disk is too small") as caught,
        stage(tmp_path / "out", size=34 << 20),
    ):
        pass
    assert "got: 5.24 MB free" in caught.value.message and "expected: 35.7 MB" in caught.value.message
    assert names(tmp_path) == []


def test_an_unusable_folder_says_so(tmp_path: Path) -> None:
    for name in ("out-unusable", "out-unusable-2"):
        with stage(tmp_path / "out", size=1) as place:
            place.mark_unusable("It answers otherwise.")
        assert "otherwise" in (tmp_path / name / "README.md").read_text()
    assert names(tmp_path) == ["out-unusable", "out-unusable-2"]
