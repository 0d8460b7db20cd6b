"""A study trains again when any file of its base model changed that a result may depend on."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from doratune.study.address import model_identity


@pytest.mark.parametrize(
    "name",
    [
        "config.json",
        "generation_config.json",
        "tokenizer.json",
        "tokenizer_config.json",
        "special_tokens_map.json",
        "added_tokens.json",
        "vocab.json",
        "merges.txt",
        "vocab.txt",
        "tokenizer.model",
        "spiece.model",
        "model.safetensors",
    ],
)
def test_a_changed_file_is_another_model(name: str, tiny_model: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(tiny_model, tmp_path / "model"))
    before = model_identity(str(folder))
    assert before == model_identity(str(tiny_model))
    with (folder / name).open("ab") as file:
        file.write(b" ")
    assert model_identity(str(folder)) != before
