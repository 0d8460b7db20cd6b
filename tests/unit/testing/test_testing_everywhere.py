"""The pytest plugin: models in other projects' tests are on the engine, and every layer call is counted."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from peft.tuners.lora.layer import Linear
from peft.tuners.tuners_utils import BaseTuner
from torch import nn

import doratune.testing.everywhere
from doratune.peft import disable, enable
from doratune.peft.linear import EngineLinear
from doratune.testing.calls import CallCounter

pytest_plugins = ["pytester"]

TESTS = """
import torch
from torch import nn
from peft import LoraConfig, get_peft_model

def model(**settings):
    layers = nn.Sequential(nn.Linear(4, 5), nn.Linear(5, 3))
    return get_peft_model(layers, LoraConfig(r=2, target_modules=["0", "1"], **settings))

def test_on_the_engine():
    model(use_dora=True)(torch.ones(2, 4)).sum().backward()

def test_left_to_peft():
    built = model(use_dora=True)
    with built.disable_adapter():
        built(torch.ones(2, 4))
    model(lora_bias=True)(torch.ones(2, 4))
"""

EXPECTED = [
    "2 layer calls on the engine, 4 left to PEFT",
    "  2 Linear on the engine",
    "  2 Linear left to PEFT: adapters disabled",
    "  2 Linear left to PEFT: lora_bias not supported",
]


@pytest.mark.parametrize("workers", [[], pytest.param(["-n", "1"], marks=pytest.mark.slow)])
def test_calls_are_counted_by_where_they_ran(workers: list[str], pytester: pytest.Pytester) -> None:
    pytester.makepyfile(TESTS)
    methods = BaseTuner.inject_adapter, Linear.forward, EngineLinear.forward
    plugin = doratune.testing.everywhere.__name__
    result = pytester.runpytest_inprocess("-p", plugin, *workers)
    result.assert_outcomes(passed=2)
    result.stdout.fnmatch_lines(["*= doratune =*", *EXPECTED], consecutive=True)
    assert (BaseTuner.inject_adapter, Linear.forward, EngineLinear.forward) == methods


def test_a_session_without_layer_calls_says_so(pytester: pytest.Pytester) -> None:
    pytester.makepyfile("def test_nothing(): pass")
    result = pytester.runpytest_inprocess("-p", doratune.testing.everywhere.__name__)
    result.stdout.fnmatch_lines(["no LoRA or DoRA layer was called"])


@pytest.fixture
def counter() -> Iterator[CallCounter]:
    counter = CallCounter()
    counter.start()
    yield counter
    counter.stop()


def adapted(**settings: Any) -> nn.Module:
    torch.manual_seed(0)
    layers = nn.Sequential(nn.Linear(4, 3))
    return get_peft_model(layers, LoraConfig(r=2, target_modules=["0"], init_lora_weights=False, **settings))


def test_reasons(counter: CallCounter) -> None:
    model, x = adapted(), torch.ones(2, 4)
    model(x)
    assert counter.calls.left == {("Linear", "not built by one of PEFT's models"): 1}
    counter.calls.left.clear()
    enable(model)
    model.add_adapter("second", LoraConfig(r=2, target_modules=["0"]))
    model.base_model.set_adapter(["default", "second"])
    model(x)
    model.set_adapter("default")
    model.eval()(x, adapter_names=["default", "second"])
    model.merge_adapter()
    model(x)
    model.unmerge_adapter()
    model(x)
    assert counter.calls.left == {
        ("Linear", "several active adapters"): 1,
        ("Linear", "called with more than an input: adapter_names"): 1,
        ("Linear", "adapter merged"): 1,
    }
    assert counter.calls.engine == {"Linear": 1}
    disable(model)


def test_a_call_that_raises_is_not_counted(counter: CallCounter) -> None:
    model = adapted(use_dora=True)
    enable(model)
    with pytest.raises(RuntimeError):
        model(torch.ones(2, 5))
    assert not counter.calls.engine and not counter.calls.left
