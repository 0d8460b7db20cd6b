"""Frozen layers with the engine's products, compared with PyTorch's own, on any CPU."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import Tensor, nn

from doratune.engine import matmul as engine
from doratune.peft import enable
from doratune.speedups.changes import Changes
from doratune.speedups.frozen_linear import speed_up_frozen as speed_up_in_model

pytestmark = pytest.mark.skipif(not torch.backends.mkldnn.is_available(), reason="no oneDNN")


@pytest.fixture(autouse=True)
def _onednn(processor: Callable[[str], None]) -> None:
    processor("AMD Zen 5")


@pytest.fixture
def products_made(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    made: list[int] = []
    product = engine.matmul

    def counted(a: Tensor, b: Tensor) -> Tensor:
        made.append(1)
        return product(a, b)

    monkeypatch.setattr(engine, "matmul", counted)
    return made


def speed_up_frozen(model: nn.Module) -> Changes:
    changes = Changes()
    speed_up_in_model(model, changes)
    return changes


def layer(*, bias: bool, trained: bool = False, dtype: torch.dtype = torch.float32) -> nn.Linear:
    torch.manual_seed(0)
    return nn.Linear(24, 16, bias=bias, dtype=dtype).requires_grad_(trained)


def run(module: nn.Linear, x: Tensor, dy: Tensor) -> tuple[Tensor, Tensor]:
    x = x.clone().requires_grad_()
    y = module(x)
    (dx,) = torch.autograd.grad(y, x, dy)
    return y.detach(), dx


@pytest.mark.parametrize("bias", [False, True])
def test_outputs_and_gradients_are_those_of_the_layer(bias: bool, products_made: list[int]) -> None:
    plain, quick = layer(bias=bias), layer(bias=bias)
    speed_up_frozen(nn.Sequential(quick))
    products_made.clear()  # of the check
    x, dy = torch.randn(3, 7, 24), torch.randn(3, 7, 16)
    for one, other in zip(run(quick, x, dy), run(plain, x, dy), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-6)
    assert len(products_made) == 2
    with torch.no_grad():
        torch.testing.assert_close(quick(x), plain(x), rtol=1e-5, atol=1e-6)


def test_adapted_layers_stay_the_engine_s(products_made: list[int]) -> None:
    model: Any = nn.Sequential(layer(bias=False), nn.Linear(16, 8))
    model = get_peft_model(model, LoraConfig(target_modules=["0"], use_dora=True))
    enable(model)
    speed_up_frozen(model)
    products_made.clear()  # of the check
    adapted, plain = model.base_model.model
    model(torch.randn(2, 24)).sum().backward()
    assert len(products_made) == 2  # of the plain layer, there and back
    assert "forward" in vars(plain)
    assert not any("forward" in vars(module) for module in adapted.modules())
    assert adapted.adapter_on_engine() == "default"


def test_frozen_adapters_stay_the_engine_s() -> None:
    model: Any = nn.Sequential(layer(bias=False), nn.Linear(16, 8))
    model = get_peft_model(model, LoraConfig(target_modules=["0"], use_dora=True)).requires_grad_(False)
    enable(model)
    speed_up_frozen(model)
    adapted, plain = model.base_model.model
    assert "forward" in vars(plain)
    assert not any("forward" in vars(module) for module in adapted.modules())
    assert adapted.adapter_on_engine() == "default"


def test_what_is_trained_or_of_another_dtype_is_left_alone(products_made: list[int]) -> None:
    left = nn.Sequential(layer(bias=True, trained=True), layer(bias=True, dtype=torch.bfloat16))
    speed_up_frozen(left)
    assert all("forward" not in vars(module) for module in left)
    later = layer(bias=True)
    speed_up_frozen(later)
    products_made.clear()  # of the check
    later.requires_grad_(True)
    later(torch.randn(2, 24)).sum().backward()
    assert later.weight.grad is not None
    with torch.autocast("cpu", torch.bfloat16):
        assert later.requires_grad_(False)(torch.randn(2, 24)).dtype == torch.bfloat16
    assert not products_made


def test_bfloat16_layers_where_oneDNN_leaves_a_thread_idle(
    products_made: list[int], processor: Callable[[str], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    processor("Intel Sapphire Rapids")
    monkeypatch.setattr(torch, "get_num_threads", lambda: engine.THREADS)
    plain, quick = layer(bias=True, dtype=torch.bfloat16), layer(bias=True, dtype=torch.bfloat16)
    speed_up_frozen(nn.Sequential(quick))
    products_made.clear()  # of the check
    x, dy = torch.randn(3, 7, 24), torch.randn(3, 7, 16).bfloat16()
    with torch.autocast("cpu", torch.bfloat16):
        for one, other in zip(run(quick, x, dy), run(plain, x, dy), strict=True):
            assert one.dtype == other.dtype
            torch.testing.assert_close(one, other, rtol=2.0**-7, atol=2.0**-7)
    for one, other in zip(run(quick, x.bfloat16(), dy), run(plain, x.bfloat16(), dy), strict=True):
        torch.testing.assert_close(one, other, rtol=2.0**-7, atol=2.0**-7)
    assert len(products_made) == 4
    with torch.autocast("cpu", torch.float16):
        assert quick(x).dtype == torch.float16
    assert len(products_made) == 4
