"""The JSON files of a model hold each key once, wherever the model is read from."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from doratune.errors import InputError
from doratune.models.config_files import NAMES
from doratune.models.load import load_model


def repeat(path: Path, key: str, value: str) -> None:
    """Have a key once more at the end of an object, so that Python takes this value."""
    text = path.read_text().rstrip() if path.exists() else '{"a": 1}'
    path.write_text(f'{text.removesuffix("}").rstrip()}, "{key}": {value}, "{key}": {value}}}')


@pytest.mark.parametrize("name", NAMES)
def test_a_key_twice_is_refused(name: str, tiny_model: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(tiny_model, tmp_path / "model"))
    repeat(folder / name, "rms_norm_eps", "0.1")
    with pytest.raises(InputError, match=rf"{name} repeats a key\n.*{name}\n.*'rms_norm_eps'"):
        load_model(str(folder), dtype="float32")


def test_the_index_of_the_weights_has_each_key_once(tiny_model: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(tiny_model, tmp_path / "model"))
    (folder / "model.safetensors").rename(folder / "a.safetensors")
    index = '{"metadata": {}, "weight_map": {"a": "a.safetensors", "a": "a.safetensors"}}'
    (folder / "model.safetensors.index.json").write_text(index)
    with pytest.raises(InputError, match="index of the weights repeats a key"):
        load_model(str(folder), dtype="float32")


def test_a_model_of_the_hub_is_looked_at_in_its_cache(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import huggingface_hub.constants

    commit, entry = "0" * 40, tmp_path / "models--org--tiny"
    folder = Path(shutil.copytree(tiny_model, entry / "snapshots" / commit))
    (entry / "refs").mkdir()
    (entry / "refs" / "main").write_text(commit)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    load_model("org/tiny", dtype="float32")
    repeat(folder / "config.json", "rms_norm_eps", "0.1")
    with pytest.raises(InputError, match=r"config\.json repeats a key"):
        load_model("org/tiny", dtype="float32")
