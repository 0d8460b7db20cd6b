"""A model is loaded whole or refused: files, weights, shapes, numbers that are not finite, ids."""

from __future__ import annotations

import json
import logging
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from doratune.errors import InputError
from doratune.models.load import load_model
from doratune.models.whole import refuse_not_finite

WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"
MATRIX = "model.layers.1.mlp.up_proj.weight"

Spoil = Callable[[Path], object]


@pytest.fixture
def model(tiny_model: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(tiny_model, tmp_path / "model"))


def cut(path: Path) -> None:
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])


def weights(change: Callable[[dict[str, torch.Tensor]], object]) -> Spoil:
    def spoil(folder: Path) -> None:
        tensors = load_file(folder / WEIGHTS)
        change(tensors)
        save_file(tensors, folder / WEIGHTS, metadata={"format": "pt"})

    return spoil


def config(**values: Any) -> Spoil:
    def spoil(folder: Path) -> None:
        path = folder / "config.json"
        path.write_text(json.dumps({**json.loads(path.read_text()), **values}))

    return spoil


def shards(change: Spoil) -> Spoil:
    def spoil(folder: Path) -> None:
        from transformers import LlamaForCausalLM

        whole = LlamaForCausalLM.from_pretrained(folder)
        (folder / WEIGHTS).unlink()
        whole.save_pretrained(folder, max_shard_size="60KB")
        change(folder)

    return spoil


def shard(folder: Path) -> Path:
    return sorted(folder.glob("model-*.safetensors"))[1]


def index(text: str) -> Spoil:
    return shards(lambda folder: (folder / INDEX).write_text(text))


SPOILT: dict[str, tuple[Spoil, list[str]]] = {
    "truncated": (lambda f: cut(f / WEIGHTS), ["the weights cannot be read", WEIGHTS]),
    "empty": (lambda f: (f / WEIGHTS).write_bytes(b""), ["the weights cannot be read", WEIGHTS]),
    "a folder for a file": (
        lambda f: ((f / WEIGHTS).unlink(), (f / WEIGHTS).mkdir()),
        ["holds no weights", WEIGHTS],
    ),
    "one shard truncated": (
        shards(lambda f: cut(shard(f))),
        ["the weights cannot be read", "model-00002-of-"],
    ),
    "one shard missing": (shards(lambda f: shard(f).unlink()), ["files of the weights are missing", "00002"]),
    "an index that is no JSON": (index("{"), ["index of the weights", INDEX]),
    "an index without files": (index('{"weight_map": {}}'), ["files of the weights are missing", INDEX]),
    "an index of another form": (index("[]"), ["index of the weights", INDEX]),
    "a matrix missing": (weights(lambda w: w.pop(MATRIX)), ["lack some of its weights", MATRIX]),
    "a norm missing": (
        weights(lambda w: w.pop("model.norm.weight")),
        ["lack some of its weights", "model.norm.weight"],
    ),
    "a layer too few in the files": (
        config(num_hidden_layers=3),
        ["lack some of its weights", "model.layers.2.", "and 6 more"],
    ),
    "a layer too many in the files": (
        config(num_hidden_layers=1),
        ["that its configuration leaves out", "model.layers.1.", "and 6 more"],
    ),
    "a bias that the model has not": (
        weights(lambda w: w.update({MATRIX.replace("weight", "bias"): torch.ones(64)})),
        ["that its configuration leaves out", "up_proj.bias"],
    ),
    "another vocabulary": (config(vocab_size=700), ["other shapes", "(600, 64), not (700, 64)"]),
    "other widths": (config(intermediate_size=128), ["other shapes", "down_proj"]),
    "NaN": (weights(lambda w: w[MATRIX][3].fill_(float("nan"))), ["not finite", MATRIX]),
    "infinities of both signs": (
        weights(lambda w: w["model.norm.weight"][:2].copy_(torch.tensor([float("inf"), -float("inf")]))),
        ["not finite", "model.norm.weight"],
    ),
    "a configuration that is a list": (
        lambda f: (f / "config.json").write_text("[]"),
        ["config.json is not a JSON object"],
    ),
    "a configuration of negative sizes": (config(hidden_size=-4), ["the model cannot be read"]),
    "a configuration of wrong types": (config(hidden_size="wide"), ["the model cannot be read", "wide"]),
}


@pytest.mark.parametrize("case", SPOILT)
def test_an_incomplete_model_is_refused(case: str, model: Path) -> None:
    spoil, said = SPOILT[case]
    spoil(model)
    with pytest.raises(InputError) as caught:
        load_model(str(model), dtype="float32")
    assert [words for words in said if words not in caught.value.message] == []


def test_a_part_outside_the_language_model_is_left_out_and_reported(
    model: Path, caplog: pytest.LogCaptureFixture
) -> None:
    weights(lambda w: w.update({"model.vision_tower.patch.weight": torch.ones(4)}))(model)
    with caplog.at_level(logging.WARNING, "doratune"):
        load_model(str(model), dtype="float32")
    assert "model.vision_tower.patch.weight" in caplog.text


@pytest.mark.parametrize("kept", ["tied", "twice", "with another head"])
def test_tied_embeddings_lack_nothing(kept: str, model: Path) -> None:
    config(tie_word_embeddings=True)(model)
    head, embedding = "lm_head.weight", "model.embed_tokens.weight"
    if kept == "tied":
        weights(lambda w: w.pop(head))(model)
    elif kept == "twice":
        weights(lambda w: w.update({head: w[embedding].clone()}))(model)
    expected = load_file(model / WEIGHTS).get(head, load_file(model / WEIGHTS)[embedding])
    loaded: Any = load_model(str(model), dtype="float32").model
    assert loaded.lm_head.weight.equal(expected)


def test_files_of_older_versions_are_complete(tmp_path: Path, tiny_model: Path) -> None:
    """GPT-2's on the hub leave out the model's prefix and hold masks that are no weights any more."""
    from transformers import GPT2Config, GPT2LMHeadModel

    folder = tmp_path / "gpt2"
    original = GPT2LMHeadModel(
        GPT2Config(vocab_size=600, n_embd=32, n_layer=2, n_head=4, bos_token_id=1, eos_token_id=2)
    )
    original.save_pretrained(folder)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(tiny_model / name, folder)
    old = {name.removeprefix("transformer."): one for name, one in load_file(folder / WEIGHTS).items()}
    mask = {f"h.{layer}.attn.bias": torch.ones(1, 1, 8, 8) for layer in (0, 1)}
    save_file({**old, **mask}, folder / WEIGHTS, metadata={"format": "pt"})
    loaded, matrix = load_model(str(folder), dtype="float32").model, "transformer.h.1.mlp.c_fc.weight"
    assert loaded.get_parameter(matrix).equal(original.get_parameter(matrix))
    save_file({**old, "h.2.ln_1.weight": torch.ones(32)}, folder / WEIGHTS, metadata={"format": "pt"})
    with pytest.raises(InputError, match=r"leaves out\n.*\n.*h\.2\.ln_1\.weight"):
        load_model(str(folder), dtype="float32")


def test_masks_saved_by_old_versions_are_not_weights(tmp_path: Path, tiny_model: Path) -> None:
    from transformers import GPTJConfig, GPTJForCausalLM

    sizes = {"vocab_size": 600, "n_embd": 32, "n_layer": 2, "n_head": 4, "rotary_dim": 4}
    GPTJForCausalLM(GPTJConfig(**sizes, bos_token_id=1, eos_token_id=2)).save_pretrained(tmp_path)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(tiny_model / name, tmp_path)
    mask = {"transformer.h.0.attn.bias": torch.ones(1, 1, 8, 8, dtype=torch.bool)}
    scalar = {"transformer.h.0.attn.masked_bias": torch.tensor(-1e9)}
    weights(lambda tensors: tensors.update(mask | scalar))(tmp_path)
    load_model(str(tmp_path), dtype="float32")
    weights(lambda tensors: tensors.update({"transformer.h.0.attn.q_proj.bias": torch.ones(32)}))(tmp_path)
    with pytest.raises(InputError, match=r"q_proj\.bias"):
        load_model(str(tmp_path), dtype="float32")


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_large_weights_are_finite(dtype: torch.dtype, model: Path) -> None:
    """Their sum is not, in float16 by far."""
    loaded: Any = load_model(str(model), dtype="float32").model.to(dtype)  # pyright: ignore[reportArgumentType]
    with torch.no_grad():
        loaded.get_parameter(MATRIX).fill_(torch.finfo(dtype).max)
    refuse_not_finite(loaded, "model")
    with torch.no_grad():
        loaded.get_parameter(MATRIX)[5, 7] = float("nan")
    with pytest.raises(InputError, match=MATRIX):
        refuse_not_finite(loaded, "model")


def test_floats_of_8_bits_are_checked(model: Path) -> None:
    loaded = load_model(str(model), dtype="float32").model
    weight = loaded.get_parameter(MATRIX)
    weight.data = weight.data.to(torch.float8_e4m3fn)
    refuse_not_finite(loaded, "model")
    weight.data = torch.full_like(weight.data.float(), float("nan")).to(torch.float8_e4m3fn)
    with pytest.raises(InputError, match=MATRIX):
        refuse_not_finite(loaded, "model")


def test_a_nan_is_found_in_4_bits(model: Path) -> None:
    pytest.importorskip("bitsandbytes")
    from doratune.models.fingerprint import fingerprint

    weights(lambda w: w[MATRIX][3].fill_(float("nan")))(model)
    with pytest.raises(InputError, match=MATRIX):
        fingerprint(load_model(str(model), load_in_4bit=True))


def test_pickles_are_named_and_the_line_converts_them(model: Path) -> None:
    expected = load_file(model / WEIGHTS)
    torch.save(expected, model / "pytorch_model.bin")
    (model / WEIGHTS).unlink()
    with pytest.raises(InputError, match="pickled") as caught:
        load_model(str(model))
    assert str(model / "pytorch_model.bin") in caught.value.message
    assert caught.value.fix is not None
    line = caught.value.fix.partition("new folder: ")[2]
    command = shlex.split(line)
    assert command[:2] == ["python", "-c"]
    subprocess.run([sys.executable, *command[1:]], check=True, capture_output=True)
    converted = load_model(f"{model}-safetensors", dtype="float32").model
    assert all(converted.get_parameter(name).equal(one) for name, one in expected.items())


def more_ids(folder: Path) -> None:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.add_tokens(["<one>", "<two>"])
    tokenizer.save_pretrained(folder)


def test_ids_without_an_embedding_are_refused(model: Path) -> None:
    more_ids(model)
    with pytest.raises(InputError) as caught:
        load_model(str(model))
    for words in ("2 of the tokenizer's ids", "'<one>' is 600", "ids below 600"):
        assert words in caught.value.message


def test_an_embedding_may_have_more_rows(model: Path) -> None:
    from transformers import LlamaForCausalLM

    padded = LlamaForCausalLM.from_pretrained(model)
    padded.resize_token_embeddings(640)
    padded.save_pretrained(model)
    more_ids(model)
    assert len(load_model(str(model)).tokenizer) == 602
