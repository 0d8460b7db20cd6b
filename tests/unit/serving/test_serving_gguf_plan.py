"""Which tensors of a GGUF file change, and that transformers reads them back as the parameters they were."""

from __future__ import annotations

import logging
import shutil
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from gguf import GGMLQuantizationType
from gguf_file import write_gguf
from torch import Tensor
from transformers import (
    AutoModelForCausalLM,
    Gemma2Config,
    Gemma3TextConfig,
    GPT2Config,
    LlamaConfig,
    MistralConfig,
    Phi3Config,
    PretrainedConfig,
    PreTrainedModel,
    Qwen2Config,
    Qwen3Config,
)
from transformers.modeling_gguf_pytorch_utils import LlamaTensorProcessor

from doratune.errors import InputError
from doratune.models.gguf import read_gguf
from doratune.serving.exporting.gguf_file import GgufFile
from doratune.serving.exporting.gguf_layout import Layout
from doratune.serving.exporting.gguf_plan import Change, Types, compare_with_base, plan_gguf
from doratune.serving.exporting.gguf_types import largest_rounding

SIZES: dict[str, Any] = {
    "vocab_size": 600,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
    **dict(bos_token_id=1, eos_token_id=2, pad_token_id=2),
}
# GGUF files say neither what Gemma's queries are scaled by nor the size of Qwen3's heads.
CONFIGURATIONS: dict[str, Callable[[], PretrainedConfig]] = {
    "llama": lambda: LlamaConfig(**SIZES),
    "tied llama": lambda: LlamaConfig(**SIZES, tie_word_embeddings=True),
    "mistral": lambda: MistralConfig(**SIZES, sliding_window=None),
    "qwen2": lambda: Qwen2Config(**SIZES),
    "qwen3": lambda: Qwen3Config(**SIZES, head_dim=128),
    "gemma2": lambda: Gemma2Config(**SIZES, head_dim=16, query_pre_attn_scalar=256),
    "gemma3": lambda: Gemma3TextConfig(**SIZES, head_dim=16, query_pre_attn_scalar=256),
    "phi3": lambda: Phi3Config(**SIZES),
    "gpt2": lambda: GPT2Config(
        vocab_size=600, n_embd=64, n_layer=2, n_head=4, bos_token_id=1, eos_token_id=2
    ),
}


@pytest.fixture(scope="module")
def saved(
    tiny_model: Path, tmp_path_factory: pytest.TempPathFactory
) -> Callable[[str, str], tuple[Any, Path]]:
    """A random model and its GGUF file, by the name of its configuration and the type of its matrices."""
    folder = tmp_path_factory.mktemp("models")
    models: dict[str, PreTrainedModel] = {}

    def make(name: str, kind: str = "F32") -> tuple[Any, Path]:
        place, gguf = folder / name, folder / f"{name}-{kind}.gguf"
        if name not in models:
            torch.manual_seed(len(models))
            model: Any = AutoModelForCausalLM.from_config(CONFIGURATIONS[name]()).eval()
            for one in model.parameters():
                one.requires_grad_(False).add_(torch.randn_like(one), alpha=0.05)
            model.save_pretrained(place)
            shutil.copy(tiny_model / "tokenizer.json", place)
            models[name] = model
        if not gguf.is_file():
            write_gguf(place, gguf, kind)
        return models[name], gguf

    return make


def new_values(model: Any, names: Iterable[str] | None = None) -> dict[str, Tensor]:
    """Other values for some parameters, or for all."""
    torch.manual_seed(0)
    return {
        name: torch.randn_like(one)
        for name, one in model.named_parameters()
        if names is None or name in names
    }


def changes(values: dict[str, Tensor]) -> dict[str, Change]:
    return {name: Change(tuple(one.shape), lambda one=one: one) for name, one in values.items()}


def written(
    model: Any, gguf: Path, values: dict[str, Tensor], path: Path, types: Types | None = None
) -> Path:
    plan_gguf(GgufFile(gguf), Layout(model.config), changes(values), types or Types()).write(path)
    return path


@pytest.mark.parametrize("name", CONFIGURATIONS)
def test_every_parameter_is_read_back_as_it_was_written(
    name: str, saved: Callable[..., tuple[Any, Path]], tmp_path: Path
) -> None:
    model, gguf = saved(name)
    values = new_values(model)
    read, _ = read_gguf(written(model, gguf, values, tmp_path / "new.gguf"), dtype=torch.float32)
    parameters = dict(read.named_parameters())
    assert parameters.keys() == dict(model.named_parameters()).keys()
    for key, expected in values.items():
        # Gemma's norms are 1 + weight in the file
        assert torch.allclose(parameters[key], expected, rtol=0, atol=2e-7 if "norm" in key else 0), key


@pytest.mark.parametrize("name", CONFIGURATIONS)
def test_a_file_of_the_base_differs_from_it_by_rounding_only(
    name: str, saved: Callable[..., tuple[Any, Path]]
) -> None:
    for kind in ("F32", "F16", "BF16", "Q8_0", "Q5_1", "Q4_0"):
        model, gguf = saved(name, kind)
        weights = dict(model.named_parameters())
        found = compare_with_base(GgufFile(gguf), Layout(model.config), weights, weights.__getitem__)
        limit = largest_rounding(GGMLQuantizationType[kind])
        assert found.overall <= found.largest <= limit and (kind == "F32" or found.largest > limit / 50)
        other = {key: one + 2 * limit * torch.randn_like(one) * one.std() for key, one in weights.items()}
        with pytest.raises(InputError, match=r"another model than the base[\s\S]*tensors that differ"):
            compare_with_base(GgufFile(gguf), Layout(model.config), other, other.__getitem__)


def test_only_changed_tensors_are_written_again(
    saved: Callable[..., tuple[Any, Path]], tmp_path: Path
) -> None:
    model, gguf = saved("llama", "Q4_1")
    values = new_values(model, ["model.layers.1.self_attn.k_proj.weight", "model.norm.weight"])
    path = written(model, gguf, values, tmp_path / "new.gguf", Types(requantise="Q8_0"))
    old, new = GgufFile(gguf), GgufFile(path)
    changed = {"blk.1.attn_k.weight": "Q8_0", "output_norm.weight": "F32"}
    assert new.names == old.names
    for name in old.names:
        if name in changed:
            assert new.type(name).name == changed[name]
        else:
            assert new.type(name) == old.type(name) and (new.stored(name) == old.stored(name)).all()


@pytest.mark.parametrize(
    "own, types, expected",
    [
        ("F16", Types(), "F16"),
        ("BF16", Types(requantise="Q8_0"), "BF16"),
        ("Q8_0", Types(), "Q8_0"),
        ("Q4_0", Types(requantise="Q8_0"), "Q8_0"),
        ("Q4_0", Types(dtype="F16"), "F16"),
        ("F32", Types(dtype="BF16"), "BF16"),
    ],
)
def test_the_type_of_a_changed_matrix(
    own: str, types: Types, expected: str, saved: Callable[..., tuple[Any, Path]], tmp_path: Path
) -> None:
    model, gguf = saved("llama", own)
    values = new_values(model, ["model.layers.0.mlp.up_proj.weight"])
    new = GgufFile(written(model, gguf, values, tmp_path / "new.gguf", types))
    assert new.type("blk.0.ffn_up.weight").name == expected
    got = torch.from_numpy(new.values("blk.0.ffn_up.weight"))
    (weight,) = values.values()
    assert (got - weight).norm() <= largest_rounding(GGMLQuantizationType[expected]) * weight.norm()


def test_changed_tensors_of_other_types_are_refused(saved: Callable[..., tuple[Any, Path]]) -> None:
    model, gguf = saved("llama", "Q4_0")
    changed = changes(new_values(model, ["model.layers.0.mlp.up_proj.weight", "model.norm.weight"]))
    with pytest.raises(InputError, match=r"Q4_0[\s\S]*1: blk\.0\.ffn_up\.weight[\s\S]*--requantize Q8_0"):
        plan_gguf(GgufFile(gguf), Layout(model.config), changed, Types())


def test_rows_that_do_not_fit_blocks_are_refused(saved: Callable[..., tuple[Any, Path]]) -> None:
    model, gguf = saved("llama")
    odd = GgufFile(gguf)
    odd.shape = lambda name: (64, 40)  # pyright: ignore[reportAttributeAccessIssue]
    one = {"model.layers.0.mlp.up_proj.weight": Change((64, 40), lambda: torch.zeros(64, 40))}
    with pytest.raises(InputError, match=r"blocks of 32[\s\S]*blk\.0\.ffn_up\.weight \(64, 40\)"):
        plan_gguf(odd, Layout(model.config), one, Types(dtype="Q8_0"))


@pytest.mark.parametrize("changed", ["model.embed_tokens.weight", "lm_head.weight"])
def test_tied_embeddings_part_where_one_of_them_changes(
    changed: str, saved: Callable[..., tuple[Any, Path]], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    model, gguf = saved("tied llama")
    before = model.model.embed_tokens.weight
    values = {changed: torch.randn_like(before)}
    with caplog.at_level(logging.INFO):
        plan = plan_gguf(GgufFile(gguf), Layout(model.config), changes(values), Types(), untied=True)
    assert "the file has both" in caplog.text
    plan.write(tmp_path / "new.gguf")
    read, _ = read_gguf(tmp_path / "new.gguf", dtype=torch.float32)
    for name in ("model.embed_tokens.weight", "lm_head.weight"):
        assert torch.equal(read.get_parameter(name), values.get(name, before)), name


def test_parameters_without_a_place_are_named(saved: Callable[..., tuple[Any, Path]]) -> None:
    model, gguf = saved("llama")
    names = ["model.layers.0.self_attn.q_proj.bias", "model.layers.7.mlp.up_proj.weight", "score.weight"]
    lost = {name: Change((4,), lambda: torch.zeros(4)) for name in names}
    with pytest.raises(InputError, match=r"no place[\s\S]*3: .*q_proj\.bias, .*layers\.7.*, score\.weight"):
        plan_gguf(GgufFile(gguf), Layout(model.config), lost, Types())


def test_a_file_of_another_model_is_refused(saved: Callable[..., tuple[Any, Path]]) -> None:
    model, _ = saved("llama")
    weights = dict(model.named_parameters())
    for name, match in {
        "qwen2": r"not the base model's[\s\S]*architecture qwen2 with 2[\s\S]*llama with 2",
        "mistral": r"another model[\s\S]*tensors that differ",
    }.items():
        with pytest.raises(InputError, match=match):
            compare_with_base(GgufFile(saved(name)[1]), Layout(model.config), weights, weights.__getitem__)


def test_shapes_are_compared_first(saved: Callable[..., tuple[Any, Path]]) -> None:
    model, gguf = saved("llama")
    name = "model.layers.0.mlp.up_proj.weight"
    weights = {**dict(model.named_parameters()), name: torch.zeros(95, 64)}
    match = r"another shape[\s\S]*blk\.0\.ffn_up\.weight \(96, 64\)[\s\S]*\(95, 64\), for " + name
    with pytest.raises(InputError, match=match):
        compare_with_base(GgufFile(gguf), Layout(model.config), weights, weights.__getitem__)
    with pytest.raises(InputError, match=match):
        plan_gguf(GgufFile(gguf), Layout(model.config), changes({name: weights[name]}), Types())


def test_missing_and_unknown_tensors_are_named(saved: Callable[..., tuple[Any, Path]]) -> None:
    model, gguf = saved("llama")
    weights = dict(model.named_parameters())
    without = {name: one for name, one in weights.items() if "layers.1.mlp.up" not in name}
    with pytest.raises(InputError, match=r"does not have: blk\.1\.ffn_up\.weight"):
        compare_with_base(GgufFile(gguf), Layout(model.config), without, weights.__getitem__)
    more = {**weights, "model.layers.0.self_attn.q_proj.bias": torch.zeros(64)}
    with pytest.raises(InputError, match=r"no tensor for model\.layers\.0\.self_attn\.q_proj\.bias"):
        compare_with_base(GgufFile(gguf), Layout(model.config), more, more.__getitem__)


def test_an_unknown_architecture_is_refused() -> None:
    with pytest.raises(InputError, match=r"does not know[\s\S]*mamba[\s\S]*doratune merge"):
        Layout(PretrainedConfig(model_type="mamba"))


@pytest.mark.parametrize("part", ["q", "k"])
def test_biases_are_arranged_like_the_rows_they_belong_to(part: str) -> None:
    """transformers' reader undoes the same permutation; RoPE's pairs become neighbours within each head."""
    config = LlamaConfig(**SIZES)
    heads = config.num_attention_heads if part == "q" else config.num_key_value_heads
    layout, module = Layout(config), f"model.layers.0.self_attn.{part}_proj"
    weight = np.arange(heads * 16 * 3, dtype=np.float32).reshape(-1, 3)
    arranged = layout.arrange(f"{module}.weight")(weight)
    assert (layout.arrange(f"{module}.bias")(weight[:, 0]) == arranged[:, 0]).all()
    assert (arranged[0] == weight[0]).all() and (arranged[1] == weight[8]).all()
    processor = LlamaTensorProcessor(config={"num_attention_heads": 4, "num_key_value_heads": 2})
    for suffix, values in {"weight": weight, "bias": weight[:, 0]}.items():
        back = processor.process(layout.arrange(f"{module}.{suffix}")(values), f"blk.0.attn_{part}.{suffix}")
        assert (back.weights == values).all()
