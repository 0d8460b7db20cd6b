"""Models that accelerate has put on several devices: its hooks move inputs, and the engine lets them."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from accelerate import cpu_offload, dispatch_model
from accelerate.hooks import (
    AlignDevicesHook,
    ModelHook,
    SequentialHook,
    add_hook_to_module,
    remove_hook_from_module,
)
from peft import LoraConfig, get_peft_model
from peft.tuners.lora import LoraLayer
from sharded_cases import Case, built, rows
from torch import Tensor, nn

import doratune
from doratune.peft import first_calls

IDS = rows(0)[:2]
TARGETS = ("q_proj", "v_proj", "down_proj", "embed_tokens", "lm_head")
OTHER_HOOKS = "accelerate's hooks on the layer's parts do more than move the input, such as offloading"


def dispatched(model: Any) -> Any:
    """With a hook on every module, as for several devices."""
    inner = model.get_base_model() if hasattr(model, "get_base_model") else model
    parts = ["model.embed_tokens", "model.layers.0", "model.layers.1", "model.norm", "model.rotary_emb"]
    prefix = "" if inner is model else "base_model.model."
    device_map: dict[str, str | int | torch.device] = {prefix + name: "cpu" for name in (*parts, "lm_head")}
    return dispatch_model(model, device_map, force_hooks=True)


def outcome(model: Any) -> list[Tensor]:
    """The loss and every gradient."""
    model.zero_grad()
    loss = model(input_ids=IDS, labels=IDS).loss
    loss.backward()
    return [loss.detach(), *(one.grad for one in model.parameters() if one.grad is not None)]


def layers(model: nn.Module) -> list[Any]:
    return [module for module in model.modules() if isinstance(module, LoraLayer)]


@pytest.mark.parametrize("use_dora", [True, False])
@pytest.mark.parametrize("order", ["before", "after"])
def test_every_layer_is_on_the_engine_and_right(order: str, use_dora: bool) -> None:
    case = Case(use_dora=use_dora, targets=TARGETS)
    stock, model = dispatched(built(case)), built(case)
    if order == "before":
        doratune.enable(model)
    dispatched(model)
    hooked = [name for name, one in model.named_modules() if hasattr(one, "_hf_hook")]
    assert any(name.endswith("q_proj.lora_A.default") for name in hooked)
    assert doratune.enable(model).left == {}
    torch.testing.assert_close(outcome(model), outcome(stock))
    calls = str(first_calls(model))
    assert calls == "8 of 8 LoRA and DoRA layers ran on the engine in the first forward pass"
    assert doratune.disable(model) == 8
    assert [type(one) for one in layers(model)] == [type(one) for one in layers(stock)]
    torch.testing.assert_close(outcome(model), outcome(stock), rtol=0, atol=0)
    assert all(one._hf_hook is not None for one in layers(model))


def test_the_base_s_hook_moves_the_input() -> None:
    """A base that was dispatched before it had adapters has hooks on its own modules only."""
    torch.manual_seed(0)
    model = get_peft_model(nn.Sequential(nn.Linear(8, 8)), LoraConfig(target_modules=["0"], use_dora=True))
    layer: Any = layers(model)[0]
    moved = []

    class Counting(AlignDevicesHook):
        def pre_forward(self, module: nn.Module, *args: Any, **kwargs: Any) -> Any:
            moved.append(module)
            return super().pre_forward(module, *args, **kwargs)

    doratune.enable(model)
    hook = AlignDevicesHook("cpu")
    add_hook_to_module(layer.base_layer, SequentialHook(hook, AlignDevicesHook("cpu")))
    hook.pre_forward = Counting("cpu").pre_forward
    expected = model(torch.ones(2, 8))
    assert moved == [layer.base_layer]
    assert str(first_calls(model)).startswith("1 of 1 ")
    doratune.disable(model)
    torch.testing.assert_close(model(torch.ones(2, 8)), expected)


class Other(ModelHook):
    pass


@pytest.mark.parametrize(
    "hook",
    [
        lambda: AlignDevicesHook("cpu", offload=True),
        lambda: AlignDevicesHook("cpu", io_same_device=True),
        Other,
        lambda: SequentialHook(AlignDevicesHook("cpu"), Other()),
    ],
    ids=["offload", "same device", "other", "sequence with another"],
)
@pytest.mark.parametrize("part", ["base_layer", "lora_B.default"])
def test_any_other_hook_is_left_to_peft(part: str, hook: Any, caplog: pytest.LogCaptureFixture) -> None:
    case = Case(use_dora=False, targets=("q_proj",))  # PEFT's DoRA reads W outside the call that loads it
    stock, model = built(case), built(case)
    doratune.enable(model)
    for one in (stock, model):
        with torch.no_grad():
            add_hook_to_module(layers(one)[0].get_submodule(part), hook())
    ids = {"input_ids": IDS, "labels": IDS}
    with torch.no_grad():
        assert model(**ids).loss.item() == pytest.approx(stock(**ids).loss.item(), abs=1e-6)
    calls = str(first_calls(model))
    assert calls == (
        "1 of 2 LoRA and DoRA layers ran on the engine in the first forward pass; "
        f"1 on PEFT's path: {OTHER_HOOKS}"
    )
    assert caplog.messages[-1] == f"doratune: {calls}"
    assert caplog.records[-1].levelname == "WARNING"
    doratune.disable(model)
    assert doratune.enable(model).left == {("Linear", OTHER_HOOKS): 1}


def test_an_offloaded_model_is_left_to_peft() -> None:
    case = Case(use_dora=False, targets=("q_proj", "v_proj"))
    stock, model = built(case), built(case)
    doratune.enable(model)
    cpu_offload(model, execution_device=torch.device("cpu"))
    with torch.no_grad():
        assert model(input_ids=IDS, labels=IDS).loss == stock(input_ids=IDS, labels=IDS).loss
    assert str(first_calls(model)).startswith("0 of 4 ")


def test_hooks_that_are_removed_leave_the_layer_on_the_engine() -> None:
    case = Case(targets=TARGETS)
    stock, model = built(case), dispatched(built(case))
    doratune.enable(model)
    remove_hook_from_module(model, recurse=True)
    assert doratune.enable(model).left == {}
    torch.testing.assert_close(outcome(model), outcome(stock))
    assert str(first_calls(model)).startswith("8 of 8 ")
    doratune.disable(model)
    torch.testing.assert_close(outcome(model), outcome(stock), rtol=0, atol=0)
    assert doratune.enable(model).left == {}
