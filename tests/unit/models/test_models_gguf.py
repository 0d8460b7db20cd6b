"""GGUF files: the same model as the folder's, and one error for what is broken."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from gguf_file import write_gguf

from doratune.errors import InputError
from doratune.models.fingerprint import fingerprint
from doratune.models.gguf import write_safetensors
from doratune.models.load import load_model
from doratune.models.weights import weights_folder


@pytest.fixture(scope="module")
def gguf(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_gguf(tiny_model, tmp_path_factory.mktemp("gguf") / "tiny.gguf")


def test_a_gguf_file_is_the_model_of_its_folder(tiny_model: Path, gguf: Path) -> None:
    ours, folder = (load_model(str(place), dtype="float32") for place in (gguf, tiny_model))
    ids = torch.arange(3, 20).reshape(1, -1)
    torch.testing.assert_close(ours.model(ids).logits, folder.model(ids).logits)
    text = "is the sky blue?"
    assert ours.tokenizer(text)["input_ids"] == folder.tokenizer(text)["input_ids"]
    assert fingerprint(ours) == fingerprint(folder)


@pytest.mark.parametrize("part", [0.0, 0.001, 0.3, 0.7, 0.999])
def test_a_truncated_file_is_one_error(part: float, gguf: Path, tmp_path: Path) -> None:
    path, content = tmp_path / "cut.gguf", gguf.read_bytes()
    path.write_bytes(content[: int(part * len(content))])
    for read in (load_model, weights_folder):
        with pytest.raises(InputError, match="cannot be read") as caught:
            read(str(path))
        assert str(path) in caught.value.message


def test_a_folder_is_refused_as_a_file(tmp_path: Path) -> None:
    (tmp_path / "model.gguf").mkdir()
    with pytest.raises(InputError, match=r"no config\.json"):
        load_model(str(tmp_path / "model.gguf"))


def test_a_conversion_draws_no_bars_and_leaves_the_switch(
    gguf: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    import transformers

    bars = transformers.utils.logging
    before = bars.is_progress_bar_enabled()
    bars.enable_progress_bar()
    try:
        write_safetensors(gguf, tmp_path / "out")
        assert bars.is_progress_bar_enabled()
    finally:
        if not before:
            bars.disable_progress_bar()
    assert "%" not in capfd.readouterr().err and (tmp_path / "out" / "config.json").is_file()
