"""One line tells what became of each layer's first call."""

from __future__ import annotations

import copy
import logging
import pickle
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import nn
from torch.distributed.fsdp import fully_shard

import doratune
from doratune.peft import LayerCalls, disable_automatically, enable_automatically, first_calls

X = torch.ones(2, 8)


def adapted(layers: nn.Module | None = None, *, use_dora: bool = True) -> Any:
    torch.manual_seed(0)
    layers = layers or nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 8))
    return get_peft_model(layers, LoraConfig(target_modules=["0", "1"], use_dora=use_dora, r=2))


def lines(caplog: pytest.LogCaptureFixture) -> list[tuple[str, str]]:
    """Messages about first calls, with their levels."""
    kept = [one for one in caplog.records if one.name == "doratune.peft.first_calls"]
    return [(one.levelname, one.getMessage()) for one in kept]


def test_one_line_after_the_first_forward_pass(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    model = adapted()
    assert first_calls(model) is None
    doratune.enable(model)
    assert first_calls(model) is None
    for _ in range(3):
        model(X)
    said = "2 of 2 LoRA and DoRA layers ran on the engine in the first forward pass"
    assert lines(caplog) == [("INFO", f"doratune: {said}")]
    assert str(first_calls(model)) == said
    assert first_calls(nn.Sequential(model)) is first_calls(model)  # as in a wrapper
    doratune.enable(model)
    model(X)
    assert len(lines(caplog)) == 1


def test_what_changed_since_enable_is_a_warning(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    model = adapted()
    doratune.enable(model)
    model.base_model.model[0].base_layer.weight.requires_grad_()
    model(X)
    said = (
        "1 of 2 LoRA and DoRA layers ran on the engine in the first forward pass; "
        "1 on PEFT's path: base weight is being trained"
    )
    assert lines(caplog) == [("WARNING", f"doratune: {said}")]


def test_what_enable_left_is_in_the_line(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    model = adapted()
    model.base_model.model[0].base_layer.weight.requires_grad_()
    doratune.enable(model)
    model(X)
    ((level, said),) = lines(caplog)
    assert level == "INFO"
    assert "1 of 2" in said
    assert said.endswith("1 on PEFT's path: base weight is being trained")


class Optional(nn.Sequential):
    def forward(self, input: torch.Tensor) -> torch.Tensor:
        return self[0](input)


def test_a_layer_that_is_not_in_use_is_counted_when_the_second_pass_begins() -> None:
    model = adapted(Optional(nn.Linear(8, 8), nn.Linear(8, 8)))
    doratune.enable(model)
    model(X)
    assert first_calls(model) is None
    model(X)
    said = "1 of 1 LoRA and DoRA layers ran on the engine in the first forward pass; 1 not called yet"
    assert str(first_calls(model)) == said


def test_calls_without_an_adapter_or_without_memory_do_not_count() -> None:
    """A reference pass, a merged model, and a pass that only asks for shapes."""
    model = adapted()
    doratune.enable(model)
    with model.disable_adapter():
        model(X)
    model.merge_adapter()
    model(X)
    model.unmerge_adapter()
    shapes = adapted().to("meta")
    doratune.enable(shapes)
    shapes(X.to("meta"))
    assert first_calls(shapes) is None
    assert first_calls(model) is None
    model(X)
    assert str(first_calls(model)).startswith("2 of 2 ")


def test_a_call_that_the_layer_cannot_take_has_its_reason() -> None:
    model = adapted(use_dora=False).eval()
    doratune.enable(model)
    model(X, adapter_names=["default", "__base__"])
    calls = first_calls(model)
    assert calls is not None
    assert calls.left == {("Linear", "called with more than an input"): 2}


def test_a_further_adapter_on_other_layers_is_counted_anew() -> None:
    model = adapted()
    doratune.enable(model)
    model(X)
    model.add_adapter("more", LoraConfig(r=2, target_modules=["0"]))
    doratune.enable(model)
    assert str(first_calls(model)).startswith("2 of 2 ")  # the same layers
    bigger = get_peft_model(
        nn.Sequential(*(nn.Linear(8, 8) for _ in range(3))), LoraConfig(target_modules=["0"])
    )
    doratune.enable(bigger)
    bigger(X)
    assert str(first_calls(bigger)).startswith("1 of 1 ")
    bigger.add_adapter("more", LoraConfig(target_modules=["0", "1"]))
    bigger.set_adapter("more")
    doratune.enable(bigger)
    assert first_calls(bigger) is None
    bigger(X)
    assert str(first_calls(bigger)).startswith("2 of 2 ")


def test_disabling_forgets_the_calls(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    model = adapted()
    doratune.enable(model)
    model(X)
    doratune.disable(model)
    assert first_calls(model) is None
    doratune.enable(model)
    assert first_calls(model) is None
    model(X)
    assert str(first_calls(model)).startswith("2 of 2 ")
    assert len(lines(caplog)) == 2


@pytest.mark.usefixtures("one_process")
def test_what_is_found_inside_the_units_of_fsdp_is_the_reason() -> None:
    """Each adapter module is a unit; the base weight of one layer is trained, but not by FSDP."""
    model = adapted()
    doratune.enable(model)
    first, second = model.base_model.model
    for layer in (first, second):
        for part in (layer.lora_A, layer.lora_B, layer.lora_magnitude_vector):
            fully_shard(part["default"])
    first.base_layer.weight.requires_grad_()
    model(X)
    said = (
        "1 of 2 LoRA and DoRA layers ran on the engine in the first forward pass; "
        "1 on PEFT's path: base weight is being trained"
    )
    assert str(first_calls(model)) == said


def test_copies_are_not_counted() -> None:
    model = adapted()
    doratune.enable(model)
    twins = [copy.deepcopy(model), pickle.loads(pickle.dumps(model))]
    for twin in twins:
        twin(X)
    assert first_calls(model) is None
    model(X)
    assert str(first_calls(model)).startswith("2 of 2 ")


@pytest.fixture
def told() -> Iterator[list[LayerCalls]]:
    calls: list[LayerCalls] = []
    enable_automatically(tell_calls=calls.append)
    yield calls
    disable_automatically()


def test_a_listener_is_told_once_per_model(told: list[LayerCalls], caplog: pytest.LogCaptureFixture) -> None:
    for count in (1, 2):
        model = adapted()
        model.base_model.model[1].base_layer.weight.requires_grad_()
        model(X)
        model(X)
        assert len(told) == count
    assert str(told[0]).startswith("1 of 2 ")
    assert lines(caplog) == []  # a warning would say it twice
