"""Two configurations over the same weights are two models if any number may change, and one if none can."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from gguf_file import write_gguf
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    BitsAndBytesConfig,
    LlamaForCausalLM,
    PreTrainedModel,
)

from doratune.models.config_settings import WITHOUT_EFFECT, config_record
from doratune.models.fingerprint import model_record
from doratune.models.load import LoadedModel, load_model
from doratune.records.base_model import compare_base_models
from doratune.records.run import ModelRecord

IDS = torch.arange(3, 40).reshape(1, -1)


@pytest.fixture
def model(tiny_model: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(tiny_model, tmp_path / "model"))


def configured(folder: Path, **values: Any) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **values}))


def recorded(folder: Path | str, **kwargs: Any) -> ModelRecord:
    return model_record(load_model(str(folder), **{"dtype": "float32", **kwargs}))


def logits(folder: Path) -> torch.Tensor:
    with torch.no_grad():
        return load_model(str(folder), dtype="float32").model(IDS).logits


OTHER: dict[str, tuple[dict[str, Any], str]] = {
    "eps": ({"rms_norm_eps": 0.1}, "rms_norm_eps is 1e-06 in the run and 0.1 here"),
    "heads": (
        {"num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 32},
        "head_dim is 16 in the run and 32 here",
    ),
    "activation": ({"hidden_act": "gelu"}, "hidden_act is 'silu' in the run and 'gelu' here"),
    "theta": (
        {"rope_parameters": {"rope_theta": 100.0, "rope_type": "default"}},
        "rope_parameters.rope_theta is 10000 in the run and 100 here",
    ),
    "theta of older files": (
        {"rope_parameters": None, "rope_theta": 500000.0},
        "rope_parameters.rope_theta is 10000 in the run and 500000 here",
    ),
    "scaling": (
        {"rope_parameters": {"rope_theta": 10000.0, "rope_type": "linear", "factor": 2.0}},
        "rope_parameters.factor is absent in the run and 2 here",
    ),
    "a mask that the configuration's class does not know": (
        {"is_causal": False},
        "is_causal is absent in the run and False here",
    ),
}


@pytest.mark.parametrize("case", OTHER)
def test_settings_that_change_scores_are_named(case: str, model: Path) -> None:
    before, numbers = recorded(model), logits(model)
    values, said = OTHER[case]
    configured(model, **values)
    assert not torch.allclose(logits(model), numbers)
    after = recorded(model)
    assert after.fingerprint == before.fingerprint
    found = compare_base_models(before, after)
    assert not found.same and said in found.difference and "weights" not in found.difference


def test_tied_embeddings_are_told_by_name(model: Path) -> None:
    before = recorded(model)
    configured(model, tie_word_embeddings=True)
    # The head in the file is not the embedding, so transformers would keep it: a file without it is tied.
    from safetensors.torch import load_file, save_file

    weights = load_file(model / "model.safetensors")
    del weights["lm_head.weight"]
    save_file(weights, model / "model.safetensors", metadata={"format": "pt"})
    found = compare_base_models(before, recorded(model))
    assert not found.same
    assert "tie_word_embeddings is False in the run and True here" in found.difference


HARMLESS: dict[str, dict[str, Any]] = {
    "where it is from": {
        "_name_or_path": "org/name",
        "transformers_version": "4.40.0",
        "architectures": None,
    },
    "dtype": {"dtype": "bfloat16"},
    "an old name of the dtype": {"torch_dtype": "float16", "dtype": None},
    "what a call returns": {"use_cache": False, "output_hidden_states": True, "output_attentions": True},
    "initial weights": {"initializer_range": 0.5},
    "labels": {"id2label": {"0": "no", "1": "yes", "2": "both"}, "label2id": {"no": 0, "yes": 1, "both": 2}},
    "ids": {"bos_token_id": 7, "pad_token_id": 5},
    "what nothing reads": {"is_llama_config": True, "transformers.js_config": {"dtype": "q4"}, "ours": 3},
    "another way to write it": {
        "rms_norm_eps": 9.999999974752427e-07,
        "rope_parameters": {"rope_theta": 10000},
    },
    "a default left out": {"attention_bias": False, "attention_dropout": 0},
}


@pytest.mark.parametrize("case", HARMLESS)
def test_settings_without_effect_do_not_differ(case: str, model: Path) -> None:
    before, numbers = recorded(model), logits(model)
    configured(model, **HARMLESS[case])
    torch.testing.assert_close(logits(model), numbers)
    after = recorded(model)
    assert after.config == before.config
    assert compare_base_models(before, after).same


def test_a_setting_at_its_default_may_be_left_out(model: Path) -> None:
    before = recorded(model)
    path = model / "config.json"
    values = json.loads(path.read_text())
    for key in ("attention_bias", "hidden_act", "rms_norm_eps", "rope_parameters", "head_dim"):
        del values[key]
    path.write_text(json.dumps(values))
    assert recorded(model).config == before.config


def eight_bits(folder: Path) -> PreTrainedModel:
    pytest.importorskip("bitsandbytes")
    quantised = BitsAndBytesConfig(load_in_8bit=True)
    return AutoModelForCausalLM.from_pretrained(folder, quantization_config=quantised, device_map={"": "cpu"})


def four_bits(folder: Path) -> PreTrainedModel:
    pytest.importorskip("bitsandbytes")
    return load_model(str(folder), load_in_4bit=True).model


def saved_again(folder: Path) -> PreTrainedModel:
    loaded = load_model(str(folder), dtype="bfloat16")
    loaded.model.save_pretrained(folder / "again")
    loaded.tokenizer.save_pretrained(folder / "again")
    return load_model(str(folder / "again"), dtype="float32").model


def skeleton(folder: Path) -> PreTrainedModel:
    with torch.device("meta"):
        return AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(folder))


FORMS: dict[str, Callable[[Path], PreTrainedModel]] = {
    "bfloat16": lambda folder: load_model(str(folder), dtype="bfloat16").model,
    "float16": lambda folder: load_model(str(folder), dtype="float32").model.half(),
    "4 bits": four_bits,
    "8 bits": eight_bits,
    "GGUF": lambda folder: load_model(str(write_gguf(folder, folder.parent / "m.gguf"))).model,
    "saved again": saved_again,
    "without memory": skeleton,
    "eager attention": lambda folder: AutoModelForCausalLM.from_pretrained(
        folder, attn_implementation="eager"
    ),
}


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("eps", [1e-6, 1e-5])
def test_how_a_model_is_loaded_and_stored_does_not_matter(form: str, eps: float, model: Path) -> None:
    configured(model, rms_norm_eps=eps)
    assert config_record(FORMS[form](model)) == recorded(model).config


def test_training_leaves_the_settings_alone(model: Path) -> None:
    """What a Trainer changes in a configuration (use_cache, ids) is without effect."""
    loaded = load_model(str(model), dtype="float32")
    before = config_record(loaded.model)
    loaded.model.gradient_checkpointing_enable()
    loaded.model.config.use_cache = False
    loaded.model.train()
    assert config_record(loaded.model) == before


def test_all_settings_of_a_class_count_but_the_listed(model: Path) -> None:
    loaded = load_model(str(model), dtype="float32").model
    listed = loaded.config.to_dict().keys() - WITHOUT_EFFECT
    assert config_record(loaded).settings.keys() == listed


@pytest.mark.parametrize("value", [float("inf"), float("nan"), 1e300])
def test_a_number_outside_float32_becomes_text(value: float, model: Path) -> None:
    loaded = load_model(str(model), dtype="float32").model
    loaded.config.attention_dropout = value
    settings = config_record(loaded).settings
    assert isinstance(settings["attention_dropout"], str)
    json.dumps(settings, allow_nan=False)


def test_layers_of_several_kinds_are_listed_one_by_one(tmp_path: Path, tiny_model: Path) -> None:
    from transformers import Qwen2Config, Qwen2ForCausalLM

    def of(**values: Any) -> ModelRecord:
        config = Qwen2Config(
            vocab_size=600,
            hidden_size=32,
            intermediate_size=32,
            num_hidden_layers=2,
            num_attention_heads=2,
            num_key_value_heads=2,
            **values,
        )
        torch.manual_seed(0)
        tokenizer = AutoTokenizer.from_pretrained(tiny_model)
        return model_record(LoadedModel(Qwen2ForCausalLM(config), tokenizer, "qwen", "", torch.float32))

    plain = of()
    assert compare_base_models(plain, of(max_window_layers=1)).same  # no layer has a window
    found = compare_base_models(plain, of(use_sliding_window=True, sliding_window=8, max_window_layers=1))
    assert "layer_types.1 is 'full_attention' in the run and 'sliding_attention' here" in found.difference
    first, second = (of(use_sliding_window=True, sliding_window=size, max_window_layers=1) for size in (8, 9))
    assert "sliding_window is 8 in the run and 9 here" in compare_base_models(first, second).difference


def test_another_architecture_over_the_same_weights_is_another_model(model: Path) -> None:
    before = recorded(model)
    configured(model, model_type="mistral", architectures=["MistralForCausalLM"])
    found = compare_base_models(before, recorded(model))
    assert "model_type is 'llama' in the run and 'mistral' here" in found.difference


def test_the_model_class_counts_not_its_name(model: Path) -> None:
    """A subclass outside of transformers has its own file, which may read what others do not."""

    class Ours(LlamaForCausalLM):
        pass

    configured(model, is_causal=True)
    assert config_record(Ours.from_pretrained(model)).settings["is_causal"] is True
