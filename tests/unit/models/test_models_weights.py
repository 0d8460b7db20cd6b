"""Weights read out of a model's files without the model."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from doratune.errors import InputError
from doratune.models.fingerprint import fingerprint, fingerprint_of
from doratune.models.load import load_model
from doratune.models.weights import WeightFiles, weights_folder

NAME = "model.layers.1.mlp.up_proj.weight"


def test_rows_are_those_of_the_loaded_model(tiny_model: Path) -> None:
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(tiny_model)
    files = WeightFiles(weights_folder(str(tiny_model)))
    for name, parameter in model.named_parameters():
        assert files.shape(name) == tuple(parameter.shape)
        assert files.rows(name).equal(parameter) and files.rows(name, slice(3, 7)).equal(parameter[3:7])
    names = [name for name, _ in model.named_parameters()]
    assert fingerprint_of(names, files.rows) == fingerprint(load_model(str(tiny_model)))


def test_shards_are_one_model(tiny_model: Path, tmp_path: Path) -> None:
    tensors = load_file(tiny_model / "model.safetensors")
    halves = [dict(sorted(tensors.items())[part::2]) for part in (0, 1)]
    for index, half in enumerate(halves):
        save_file(half, tmp_path / f"part-{index}.safetensors")
    index = {name: f"part-{index}.safetensors" for index, half in enumerate(halves) for name in half}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": index}))
    files = WeightFiles(tmp_path)
    assert all(files.rows(name).equal(tensor) for name, tensor in tensors.items())


def test_files_may_leave_out_the_models_prefix(tmp_path: Path) -> None:
    save_file({"h.0.ln.weight": torch.ones(2)}, tmp_path / "model.safetensors")
    assert WeightFiles(tmp_path).shape("transformer.h.0.ln.weight") == (2,)


def test_a_hub_id_is_read_from_the_hubs_cache(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import huggingface_hub.constants

    commit, entry = "0" * 40, tmp_path / "models--org--tiny"
    shutil.copytree(tiny_model, entry / "snapshots" / commit)
    (entry / "refs").mkdir()
    (entry / "refs" / "main").write_text(commit)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    assert WeightFiles(weights_folder("org/tiny")).shape(NAME) == (64, 64)
    with pytest.raises(InputError, match="is not there"):
        weights_folder("org/other")


def test_the_built_in_model_is_the_converted_one() -> None:
    folder = weights_folder("smollm2-135m")
    assert WeightFiles(folder).shape(NAME) == (1536, 576)


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (lambda folder: (folder / "model.safetensors").unlink(), "holds no weights"),
        (lambda folder: (folder / "model.safetensors").write_bytes(b"no weights"), "cannot be read"),
        (lambda folder: save_file({"a": torch.ones(1)}, folder / "model.safetensors"), "no such parameter"),
    ],
)
def test_bad_files_are_one_error(spoil: object, said: str, tiny_model: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(tiny_model, tmp_path / "model"))
    spoil(folder)  # type: ignore[operator]
    with pytest.raises(InputError, match=said):
        WeightFiles(folder).shape(NAME)


def test_a_missing_gguf_is_one_error(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no such model file"):
        weights_folder(str(tmp_path / "no.gguf"))
