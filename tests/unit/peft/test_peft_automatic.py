"""``enable_automatically``: every way of building a PEFT model ends on the engine; undoing it ends that."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import (
    AdaLoraConfig,
    IA3Config,
    LoraConfig,
    PeftModel,
    PromptTuningConfig,
    get_peft_model,
    inject_adapter_in_model,
    set_peft_model_state_dict,
)
from peft.tuners.lora import LoraLayer
from peft.tuners.tuners_utils import BaseTuner
from safetensors.torch import load_file
from torch import nn
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

from doratune.peft import EnableReport, disable_automatically, enable, enable_automatically
from doratune.peft.layer import EngineLayer, EngineOptions

TARGETS = ["q_proj", "v_proj"]
LAYERS = 4  # of two blocks
IDS = torch.arange(12).view(2, 6)


@pytest.fixture
def told() -> Iterator[list[EnableReport]]:
    """The engine for every model built in a test; the reports, model by model."""
    reports: list[EnableReport] = []
    enable_automatically(reports.append)
    yield reports
    disable_automatically()


def llama() -> LlamaForCausalLM:
    torch.manual_seed(0)
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=32,
            hidden_size=16,
            intermediate_size=32,
            num_hidden_layers=2,
            num_attention_heads=2,
            num_key_value_heads=2,
        )
    )


def dora(**settings: Any) -> LoraConfig:
    # Not PEFT's usual B = 0, with which an adapter whose weights were not loaded would go unnoticed.
    return LoraConfig(
        **{"r": 2, "use_dora": True, "target_modules": TARGETS, "init_lora_weights": False, **settings}
    )


def on_engine(model: nn.Module) -> int:
    """How many layers are not of PEFT's own classes."""
    layers = [module for module in model.modules() if isinstance(module, LoraLayer)]
    return sum(type(layer).__module__.startswith("doratune.") for layer in layers)


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    """A DoRA adapter on disk, with other weights than the tests' own adapters begin with."""
    model = llama()
    torch.manual_seed(1)
    get_peft_model(model, dora()).save_pretrained(tmp_path / "adapter")
    return tmp_path / "adapter"


def loaded_by_transformers(saved: Path) -> nn.Module:
    model = llama()
    model.load_adapter(str(saved))
    return model


def loaded_as_a_base_with_adapter(saved: Path) -> nn.Module:
    llama().save_pretrained(saved.parent / "base")
    config = saved / "adapter_config.json"
    values = {**json.loads(config.read_text()), "base_model_name_or_path": str(saved.parent / "base")}
    config.write_text(json.dumps(values))
    return AutoModelForCausalLM.from_pretrained(saved)


def loaded_into_another(saved: Path, **settings: Any) -> nn.Module:
    model = get_peft_model(llama(), dora())
    model.load_adapter(saved, "second", **settings)
    model.set_adapter("second")
    return model


def injected_empty_then_filled(saved: Path) -> nn.Module:
    model = inject_adapter_in_model(dora(), llama(), low_cpu_mem_usage=True)
    set_peft_model_state_dict(model, load_file(saved / "adapter_model.safetensors"), low_cpu_mem_usage=True)
    if any(parameter.is_meta for parameter in model.parameters()):
        pytest.skip("PEFT 0.19 leaves such an adapter on the meta device")
    return model


LOADING: dict[str, Callable[[Path], nn.Module]] = {
    "PeftModel.from_pretrained": lambda saved: PeftModel.from_pretrained(llama(), saved),
    "from_pretrained, trainable": lambda saved: PeftModel.from_pretrained(llama(), saved, is_trainable=True),
    "from_pretrained, low_cpu_mem_usage": lambda saved: PeftModel.from_pretrained(
        llama(), saved, low_cpu_mem_usage=True
    ),
    "PeftModel.load_adapter": loaded_into_another,
    "load_adapter, low_cpu_mem_usage": lambda saved: loaded_into_another(saved, low_cpu_mem_usage=True),
    "inject and fill, low_cpu_mem_usage": injected_empty_then_filled,
    "transformers' load_adapter": loaded_by_transformers,
    "transformers' from_pretrained": loaded_as_a_base_with_adapter,
}


@pytest.mark.parametrize("way", LOADING)
def test_every_way_of_loading(way: str, saved: Path, told: list[EnableReport]) -> None:
    model = LOADING[way](saved).eval()
    assert on_engine(model) == LAYERS
    assert told[-1].taken == {"Linear": LAYERS} and not told[-1].left
    disable_automatically()
    pefts = LOADING[way](saved).eval()
    assert on_engine(pefts) == 0
    with torch.no_grad():
        torch.testing.assert_close(model(IDS).logits, pefts(IDS).logits)


def added_by_transformers() -> nn.Module:
    model = llama()
    model.add_adapter(dora())
    return model


def added_to_plain_lora() -> nn.Module:
    model = get_peft_model(llama(), dora(use_dora=False))
    model.add_adapter("second", dora())
    return model


def weighted() -> nn.Module:
    model = get_peft_model(llama(), dora(use_dora=False))
    model.add_adapter("second", dora(use_dora=False))
    model.add_weighted_adapter(["default", "second"], [0.5, 0.5], "both", combination_type="linear")
    return model


BUILDING: dict[str, Callable[[], nn.Module]] = {
    "get_peft_model": lambda: get_peft_model(llama(), dora()),
    "get_peft_model with a task": lambda: get_peft_model(llama(), dora(task_type="CAUSAL_LM")),
    "PeftModel": lambda: PeftModel(llama(), dora()),
    "mixed": lambda: get_peft_model(llama(), dora(), mixed=True),
    "inject_adapter_in_model": lambda: inject_adapter_in_model(dora(), llama()),
    "transformers' add_adapter": added_by_transformers,
    "add_adapter to plain LoRA": added_to_plain_lora,
    "plain LoRA": lambda: get_peft_model(llama(), dora(use_dora=False)),
    "add_weighted_adapter": weighted,
}


@pytest.mark.parametrize("way", BUILDING)
def test_every_way_of_building(way: str, told: list[EnableReport]) -> None:
    model = BUILDING[way]()
    assert on_engine(model) == LAYERS
    assert told[-1].taken == {"Linear": LAYERS} and not told[-1].left
    model(input_ids=IDS, labels=IDS).loss.backward()
    assert any(parameter.grad is not None for parameter in model.parameters())


def test_an_adapter_for_further_layers_is_reported_but_not_a_repeated_one(told: list[EnableReport]) -> None:
    model = get_peft_model(llama(), dora())
    model.add_adapter("same", dora())
    assert [report.taken for report in told] == [{"Linear": LAYERS}]
    model.add_adapter("more", dora(target_modules=[*TARGETS, "up_proj"]))
    assert [report.taken for report in told] == [{"Linear": LAYERS}, {"Linear": LAYERS + 2}]
    assert on_engine(model) == LAYERS + 2


def test_each_model_is_reported(told: list[EnableReport]) -> None:
    models = [get_peft_model(llama(), dora()) for _ in range(2)]
    assert len(told) == len(models)


OTHERS = {
    "IA3": IA3Config(target_modules=TARGETS, feedforward_modules=[]),
    "prompt tuning": PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=2),
}


@pytest.mark.parametrize("method", OTHERS)
def test_other_methods_are_left_alone(method: str, told: list[EnableReport]) -> None:
    get_peft_model(llama(), OTHERS[method])
    assert not told


def test_adalora_stays_with_peft(told: list[EnableReport]) -> None:
    model = get_peft_model(llama(), AdaLoraConfig(target_modules=TARGETS, total_step=10))
    assert on_engine(model) == 0
    assert not any(report.taken for report in told)


def test_a_refused_adapter_is_refused_with_pefts_message(told: list[EnableReport]) -> None:
    with pytest.raises(ValueError, match="Target modules"):
        get_peft_model(llama(), dora(target_modules=["no_such_module"]))
    assert not told


def test_switching_on_is_idempotent_and_off_undoes_it(told: list[EnableReport]) -> None:
    patched = BaseTuner.inject_adapter
    others: list[EnableReport] = []
    enable_automatically(others.append)
    assert BaseTuner.inject_adapter is patched

    before = get_peft_model(llama(), dora())
    assert len(told) == 1 and not others
    disable_automatically()
    disable_automatically()
    assert BaseTuner.inject_adapter.__module__ == BaseTuner.__module__
    assert not hasattr(BaseTuner.inject_adapter, "__wrapped__")
    assert on_engine(get_peft_model(llama(), dora())) == 0
    assert on_engine(before) == LAYERS

    enable_automatically(others.append)
    get_peft_model(llama(), dora())
    assert len(told) == len(others) == 1


def test_later_adapters_have_the_options_that_the_model_was_enabled_with(told: list[EnableReport]) -> None:
    model = get_peft_model(llama(), dora())
    enable(model, dropout="adapter", detach_norm=False)
    model.add_adapter("wider", dora(target_modules=[*TARGETS, "k_proj"]))
    options = {module.engine_options for module in model.modules() if isinstance(module, EngineLayer)}
    assert options == {EngineOptions(dropout="adapter", detach_norm=False)}
    assert told[-1].taken == {"Linear": LAYERS + 2}
