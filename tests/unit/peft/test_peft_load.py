"""Adapters from disk: whole and on their own base, or refused; with the outputs that they had in training."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import LlamaConfig, LlamaForCausalLM

from doratune.errors import InputError
from doratune.peft.load import fill_adapter, load_adapter
from doratune.records.adapter_folder import CONVERT, PICKLED, WEIGHTS

IDS = torch.arange(2, 34).reshape(2, 16)


def base(*, tied: bool = False) -> LlamaForCausalLM:
    torch.manual_seed(7)
    config = LlamaConfig(
        vocab_size=48,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        initializer_range=0.3,
        tie_word_embeddings=tied,
    )
    return LlamaForCausalLM(config).eval()


def trained(model: LlamaForCausalLM, **settings: Any) -> Any:
    """A model with an adapter in which every parameter has moved."""
    torch.manual_seed(3)
    settings = {"target_modules": ["q_proj", "down_proj"], "use_dora": True, **settings}
    adapted: Any = get_peft_model(model, LoraConfig(r=4, task_type="CAUSAL_LM", **settings))
    with torch.no_grad():
        for parameter in adapted.parameters():
            if parameter.requires_grad:
                parameter += 0.1 * torch.randn_like(parameter)
    return adapted.eval()


@pytest.fixture
def adapter(tmp_path: Path) -> Path:
    trained(base()).save_pretrained(tmp_path / "adapter")
    return tmp_path / "adapter"


def change_keys(
    change: Callable[[dict[str, torch.Tensor]], dict[str, torch.Tensor]],
) -> Callable[[Path], None]:
    def spoil(folder: Path) -> None:
        save_file(change(load_file(folder / WEIGHTS)), folder / WEIGHTS)

    return spoil


def without(part: str) -> Callable[[Path], None]:
    return change_keys(lambda tensors: {key: one for key, one in tensors.items() if part not in key})


def configured(**changes: Any) -> Callable[[Path], None]:
    def spoil(folder: Path) -> None:
        path = folder / "adapter_config.json"
        values = {**json.loads(path.read_text()), **changes}
        path.write_text(json.dumps({key: value for key, value in values.items() if value != "gone"}))

    return spoil


def text(content: str) -> Callable[[Path], None]:
    def spoil(folder: Path) -> None:
        (folder / "adapter_config.json").write_text(content)

    return spoil


def cut(folder: Path) -> None:
    path = folder / WEIGHTS
    path.write_bytes(path.read_bytes()[:-100])


def pickled(folder: Path) -> None:
    torch.save(load_file(folder / WEIGHTS), folder / PICKLED)
    (folder / WEIGHTS).unlink()


def nan(folder: Path) -> None:
    tensors = load_file(folder / WEIGHTS)
    for key in list(tensors)[:5]:
        tensors[key].view(-1)[3] = torch.nan
    save_file(tensors, folder / WEIGHTS)


def integers(folder: Path) -> None:
    tensors = load_file(folder / WEIGHTS)
    save_file({key: one.int() if "lora_B" in key else one for key, one in tensors.items()}, folder / WEIGHTS)


def repeated(folder: Path) -> None:
    path = folder / "adapter_config.json"
    path.write_text(path.read_text().rstrip().removesuffix("}") + ', "lora_alpha": 1}')


LAYER = "model.layers.1.self_attn.q_proj"
DAMAGES: dict[str, tuple[Callable[[Path], None], list[str]]] = {
    "keys without base_model": (
        change_keys(lambda tensors: {key.removeprefix("base_model."): one for key, one in tensors.items()}),
        [
            "12 missing (base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight",
            "12 unused",
            "and 9 more",
        ],
    ),
    "one A less": (without(f"{LAYER}.lora_A"), [f"1 missing (base_model.model.{LAYER}.lora_A.weight)"]),
    "no magnitudes": (without("magnitude"), ["4 missing", f"{LAYER}.lora_magnitude_vector"]),
    "one layer less": (without("layers.1"), ["6 missing"]),
    "no weights at all": (without("lora"), ["12 missing"]),
    "magnitudes without DoRA": (configured(use_dora=False), ["4 unused", "lora_magnitude_vector"]),
    "fewer targets": (configured(target_modules=["q_proj"]), ["6 unused", "down_proj"]),
    "more targets": (configured(target_modules=["q_proj", "down_proj", "v_proj"]), ["6 missing", "v_proj"]),
    "other targets": (configured(target_modules=["v_proj", "down_proj"]), ["missing", "unused"]),
    "targets of no layer": (configured(target_modules=["query"]), ["query"]),
    "fewer layers": (configured(layers_to_transform=[0]), ["6 unused", "layers.1"]),
    "another rank": (configured(r=8), ["shape"]),
    "a rank of another layer": (configured(rank_pattern={"layers.1.self_attn.q_proj": 2}), ["shape"]),
    "a module to save that is not saved": (configured(modules_to_save=["lm_head"]), ["1 missing", "lm_head"]),
    "biases that are not saved": (configured(bias="lora_only", target_modules=["nothing"]), ["nothing"]),
    "not finite": (nan, ["not finite", "and 2 more"]),
    "no floats": (integers, ["not floats", "lora_B", "int32"]),
    "cut off": (cut, [WEIGHTS]),
    "a pickle": (pickled, ["pickle", CONVERT]),
    "no file": (lambda folder: (folder / WEIGHTS).unlink(), [WEIGHTS]),
    "no JSON": (text("{"), ["adapter_config.json"]),
    "no object": (text("[]"), ["not a JSON object"]),
    "no method": (configured(peft_type="gone"), ["no peft_type"]),
    "another method": (configured(peft_type="IA3"), ["IA3"]),
    "no known method": (configured(peft_type=["LORA"]), ["LORA"]),
    "a key that PEFT does not know": (configured(use_better_lora=True), ["use_better_lora"]),
    "a rank that is no number": (configured(r="four"), ["r 'four'"]),
    "a rank of nothing": (configured(r=0), ["r 0"]),
    "a scaling that is no number": (configured(lora_alpha=None), ["lora_alpha None"]),
    "a key twice": (repeated, ["repeats a key", "lora_alpha"]),
    "a switch that is a text": (configured(use_rslora="false"), ["use_rslora 'false'", "true or false"]),
    "a base that is no text": (configured(base_model_name_or_path=5), ["base_model_name_or_path 5"]),
    "an adapter that a prompt switches on": (configured(alora_invocation_tokens=[5]), ["alora_invocation"]),
    "an initialisation of no name": (configured(init_lora_weights="magic"), ["magic"]),
    "a target that is no pattern": (configured(target_modules="("), ["unterminated"]),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_adapter_is_one_error(damage: str, adapter: Path) -> None:
    spoil, said = DAMAGES[damage]
    spoil(adapter)
    with pytest.raises(InputError) as caught:
        load_adapter(base(), adapter)
    assert all(part in caught.value.message for part in said), caught.value.message
    assert str(adapter) in caught.value.message


def test_the_line_that_converts_a_pickle_does(adapter: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    wanted = load_file(adapter / WEIGHTS)
    pickled(adapter)
    monkeypatch.chdir(adapter)
    exec(CONVERT.removeprefix('python -c "').removesuffix('"'), {})
    found = load_file(adapter / WEIGHTS)
    assert found.keys() == wanted.keys() and all(torch.equal(found[key], wanted[key]) for key in wanted)


def test_a_newer_key_that_is_off_does_not_matter(adapter: Path) -> None:
    configured(use_better_lora=False, better_config=None)(adapter)
    load_adapter(base(), adapter)


WHOLE: dict[str, dict[str, Any]] = {
    "LoRA": {"use_dora": False},
    "DoRA": {},
    "embeddings with their saved base": {"target_modules": ["embed_tokens", "q_proj"]},
    "a head": {"target_modules": ["lm_head"]},
    "tied embeddings": {"target_modules": ["embed_tokens", "q_proj"], "tied": True},
    "a tied head": {"target_modules": ["lm_head"], "tied": True},
    "embeddings that stay tied": {
        "target_modules": ["embed_tokens", "q_proj"],
        "tied": True,
        "ensure_weight_tying": True,
        "use_dora": False,
    },
    "a module to save": {"modules_to_save": ["lm_head"]},
    "single tokens": {"trainable_token_indices": [3, 5]},
    "single tokens of tied embeddings": {"trainable_token_indices": [3, 5], "tied": True},
    "ranks and scalings of their own": {"rank_pattern": {"q_proj": 2}, "alpha_pattern": {"down_proj": 3}},
    "PiSSA": {"init_lora_weights": "pissa", "use_dora": False},
    "PiSSA with DoRA": {"init_lora_weights": "pissa"},
    "OLoRA": {"init_lora_weights": "olora"},
    "EVA": {"init_lora_weights": "eva"},
    "orthogonal": {"init_lora_weights": "orthogonal"},
    "Gaussian": {"init_lora_weights": "gaussian"},
    "MiCA": {"init_lora_weights": "mica", "use_dora": False},
}


@pytest.mark.filterwarnings(
    "ignore:Setting `save_embedding_layers`", "ignore:Model has `tie_word_embeddings", "ignore:.*eva"
)
@pytest.mark.parametrize("kind", WHOLE)
def test_a_whole_adapter_computes_as_where_it_was_trained(kind: str, tmp_path: Path) -> None:
    if kind == "MiCA":
        pytest.importorskip("peft", minversion="0.20")
    settings = dict(WHOLE[kind])
    tied = settings.pop("tied", False)
    model = trained(base(tied=tied), **settings)
    model.save_pretrained(tmp_path)
    wanted = model(IDS).logits
    before = base(tied=tied)(IDS).logits
    assert (wanted - before).abs().max() > 0.1, "the adapter does something"
    fresh = base(tied=tied)
    torch.manual_seed(99)
    loaded = load_adapter(fresh, tmp_path)
    assert torch.equal(loaded(IDS).logits, wanted)


def lora_ga(model: LlamaForCausalLM) -> dict[str, Any]:
    from peft.tuners.lora import LoraGAConfig, preprocess_loraga

    settings = {"init_lora_weights": "lora_ga", "lora_ga_config": LoraGAConfig()}
    config = LoraConfig(r=4, target_modules=["q_proj", "down_proj"], **settings)  # pyright: ignore[reportArgumentType]
    preprocess_loraga(model, config, train_step=lambda: model(IDS, labels=IDS).loss.backward())
    return settings


LORA_GA = pytest.mark.filterwarnings("ignore:Full backward hook is firing")
"""Its preparation, by PEFT, takes gradients of token ids."""


@LORA_GA
@pytest.mark.parametrize("use_dora", [False, True])
@pytest.mark.parametrize("kind", ["pissa_niter_4", "lora_ga"])
def test_a_base_that_cannot_be_had_again_is_refused(kind: str, use_dora: bool, tmp_path: Path) -> None:
    """PEFT loads them without a word, onto another base than the trained one."""
    model = base()
    settings: Any = lora_ga(model) if kind == "lora_ga" else {"init_lora_weights": kind}
    adapted = trained(model, use_dora=use_dora, **settings)
    wanted = adapted(IDS).logits
    adapted.save_pretrained(tmp_path)
    fresh = base()
    torch.manual_seed(99)
    by_peft: Any = PeftModel.from_pretrained(fresh, tmp_path)
    assert (by_peft(IDS).logits - wanted).abs().max() > 0.1, "PEFT can by now: stop refusing it"
    with pytest.raises(InputError, match=kind) as caught:
        load_adapter(base(), tmp_path)
    fix = "merge_and_unload" if use_dora else "path_initial_model_for_weight_conversion"
    assert fix in caught.value.message


def test_corda_is_refused(adapter: Path) -> None:
    configured(init_lora_weights="corda", corda_config={})(adapter)
    with pytest.raises(InputError, match="corda"):
        load_adapter(base(), adapter)


@LORA_GA
@pytest.mark.filterwarnings(
    "ignore:(PiSSA|OLoRA) changes the base weights", "ignore:Adapter .*not be used with other"
)
@pytest.mark.parametrize("kind", ["pissa_niter_4", "lora_ga", "pissa", "olora"])
def test_what_was_saved_converted_is_loaded(kind: str, tmp_path: Path) -> None:
    model = base()
    settings: Any = lora_ga(model) if kind == "lora_ga" else {"init_lora_weights": kind}
    torch.manual_seed(3)
    config = LoraConfig(r=4, task_type="CAUSAL_LM", target_modules=["q_proj", "down_proj"], **settings)
    adapted: Any = get_peft_model(model, config).eval()
    first = tmp_path / "first"
    adapted.peft_config["default"].init_lora_weights = True
    adapted.save_pretrained(first)
    adapted.peft_config["default"].init_lora_weights = kind
    with torch.no_grad():
        for parameter in adapted.parameters():
            if parameter.requires_grad:
                parameter += 0.1 * torch.randn_like(parameter)
    wanted = adapted(IDS).logits.detach()
    adapted.save_pretrained(tmp_path / "last", path_initial_model_for_weight_conversion=str(first))
    found = load_adapter(base(), tmp_path / "last")(IDS).logits
    assert (found - wanted).abs().max() <= 1e-4 * wanted.abs().max()


def test_a_checkpoint_fills_a_model_that_exists(adapter: Path) -> None:
    wanted = trained(base())(IDS).logits
    model: Any = get_peft_model(
        base(), LoraConfig(r=4, task_type="CAUSAL_LM", target_modules=["q_proj", "down_proj"], use_dora=True)
    ).eval()
    fill_adapter(model, adapter)
    assert torch.equal(model(IDS).logits, wanted)
    without("layers.1.mlp")(adapter)
    with pytest.raises(InputError, match="3 missing"):
        fill_adapter(model, adapter)
