"""Products widened to float32, compared with float64, on any CPU; where it pays off, all of a layer's."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import Any

import pytest
import torch
from layers import random_layer
from parity import adapted, layer_of, on_engine
from tolerances import assert_close
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from doratune.engine import matmul as engine
from doratune.engine.lora_update import add_update
from doratune.engine.matmul import differs_from_pytorch, frozen_linear, is_widened, linear, matmul
from doratune.functional import dora_linear, lora_linear
from doratune.speedups.attention import attend, lay_out
from doratune.speedups.settings import SpeedupSettings
from doratune.speedups.token_loss import token_scores

HALF_UNITS = {torch.bfloat16: 2.0**-8, torch.float16: 2.0**-11}
"""Of the last place, relatively: the most that one rounding changes."""
SUMS = 2e-6
"""Of float32 sums over some hundreds of products, as a share of the largest value."""

dtypes = pytest.mark.parametrize("dtype", list(HALF_UNITS))


@pytest.fixture(autouse=True, params=["AMD Zen 3", "Intel Ice Lake"])
def _slow_at_half(request: pytest.FixtureRequest, processor: Callable[[str], None]) -> None:
    """Processors without fast products of either type: oneDNN lacks them, or emulates bfloat16."""
    processor(request.param)


@pytest.fixture(params=["whole", "in blocks"])
def blocks(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    if request.param == "in blocks":
        monkeypatch.setattr(engine, "BLOCK_ELEMENTS", 300)
        monkeypatch.setattr(engine, "ROWS_ELEMENTS", 700)


class HalfProducts(TorchDispatchMode):
    """Notes PyTorch's own products of bfloat16 and float16 matrices."""

    def __init__(self) -> None:
        super().__init__()
        self.made: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func.__name__.split(".")[0] in ("mm", "addmm", "addmm_", "bmm", "baddbmm") and any(
            isinstance(one, Tensor) and one.dtype in HALF_UNITS for one in args
        ):
            self.made.append(func.__name__)
        return func(*args, **(kwargs or {}))


def assert_rounded_once(actual: Tensor, exact: Tensor) -> None:
    atol = SUMS * exact.abs().max().item() if exact.numel() else 0.0
    if actual.dtype == torch.float16:
        atol = max(atol, 2.0**-25)  # half a unit of its smallest numbers
    torch.testing.assert_close(actual.double(), exact, rtol=HALF_UNITS[actual.dtype], atol=atol)


@dtypes
@pytest.mark.parametrize("scaling", [1.0, -16 / 3**0.5, 0.0])
@pytest.mark.parametrize(
    ("n", "k", "p"), [(5, 7, 3), (70, 96, 80), (1, 64, 1), (0, 8, 4), (8, 4, 0), (8, 0, 4)]
)
@pytest.mark.usefixtures("blocks")
def test_product(n: int, k: int, p: int, scaling: float, dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    a, before = torch.randn(n, k).to(dtype), torch.randn(n, p).to(dtype)
    for b in (torch.randn(k, p).to(dtype), torch.randn(p, k).to(dtype).T):
        exact = scaling * (a.double() @ b.double())
        product = matmul(a, b, alpha=scaling)
        assert product.dtype == dtype and product.is_contiguous()
        assert_rounded_once(product, exact)
        total = before.clone()
        assert matmul(a, b, alpha=scaling, onto=total) is total
        assert_rounded_once(total, before.double() + exact)


@pytest.mark.usefixtures("blocks")
def test_strides() -> None:
    torch.manual_seed(0)
    b = torch.randn(64, 32).bfloat16()
    for a in (
        torch.randn(64, 100).bfloat16().T,
        torch.randn(100, 128).bfloat16()[:, ::2],
        torch.randn(100, 128).bfloat16()[:, 3:67],
        torch.randn(1, 64).bfloat16().expand(100, 64),
        torch.randn(()).bfloat16().expand(100, 64),
    ):
        exact = a.double() @ b.double()
        assert_rounded_once(matmul(a, b), exact)
        assert_rounded_once(matmul(b.T, a.T), exact.T)
        whole = torch.randn(32, 100).bfloat16()
        expected = whole.T.double() + exact
        matmul(a, b, onto=whole.T)
        assert_rounded_once(whole.T, expected)


def test_autocast_does_not_round_it() -> None:
    torch.manual_seed(0)
    a, b = torch.randn(70, 96).bfloat16(), torch.randn(96, 80).bfloat16()
    with torch.autocast("cpu", torch.bfloat16), HalfProducts() as products:
        product = matmul(a, b)
    assert products.made == []
    assert_rounded_once(product, a.double() @ b.double())


def test_what_does_not_fit_is_refused() -> None:
    a = torch.randn(3, 4).bfloat16()
    with pytest.raises(RuntimeError, match="mat1 and mat2"):
        matmul(a, torch.randn(5, 2).bfloat16())
    with pytest.raises(RuntimeError):
        matmul(a, torch.randn(4, 2).bfloat16(), onto=torch.randn(3, 3).bfloat16())


def test_what_is_widened() -> None:
    for dtype in (torch.float32, torch.float64, torch.int8):
        assert not is_widened(torch.zeros(2, 2, dtype=dtype))
    for dtype in HALF_UNITS:
        assert is_widened(torch.zeros(2, 2, dtype=dtype))
        assert not is_widened(torch.zeros(2, 2, dtype=dtype, device="meta"))
        assert differs_from_pytorch(torch.zeros(2, 2, dtype=dtype))


def test_bias() -> None:
    torch.manual_seed(0)
    x, W, bias = torch.randn(7, 48).bfloat16(), torch.randn(40, 48).bfloat16(), torch.randn(40).bfloat16()
    with HalfProducts() as products:
        y = linear(x, W, bias)
    assert_close("output", torch.bfloat16, y, x.double() @ W.double().T + bias.double())
    assert not products.made


FORMS: dict[str, Callable[..., Tensor]] = {
    "DoRA": lambda one, dropped: dora_linear(one.x, one.W, one.A, one.B, one.m, one.scaling, one.bias),
    "DoRA, dropout as PEFT's": lambda one, dropped: dora_linear(
        one.x, one.W, one.A, one.B, one.m, one.scaling, one.bias, x_dropped=dropped
    ),
    "DoRA, dropout of the adapter": lambda one, dropped: dora_linear(
        one.x, one.W, one.A, one.B, one.m, one.scaling, one.bias, x_dropped=dropped, dropout="adapter"
    ),
    "LoRA": lambda one, dropped: lora_linear(one.x, one.W, one.A, one.B, one.scaling, one.bias),
    "LoRA on any base": lambda one, dropped: add_update(
        frozen_linear(one.x, one.W, one.bias), dropped, one.A, one.B, one.scaling
    ),
}


def exact_form(form: str, one: Any, dropped: Tensor) -> Tensor:
    """The same by its formula in float64."""
    x, W, A, B, m, bias = (t.double() for t in (one.x, one.W, one.A, one.B, one.m, one.bias))
    dropped = dropped.double()
    norm = (W + one.scaling * B @ A).norm(dim=1).detach()
    g = m / norm if "DoRA" in form else torch.ones_like(m)
    adapter = one.scaling * (x if form in ("DoRA", "LoRA") else dropped) @ A.T @ B.T
    if form == "DoRA, dropout as PEFT's":
        return x @ W.T + bias + (g - 1) * (dropped @ W.T) + g * adapter
    return g * (x @ W.T + adapter) + bias


@dtypes
@pytest.mark.parametrize("autocast", [False, True])
@pytest.mark.parametrize("form", FORMS)
def test_every_product_of_a_layer(form: str, autocast: bool, dtype: torch.dtype) -> None:
    layer = random_layer(dtype=torch.float32 if autocast else dtype)
    layer.W = layer.W.detach().to(dtype).to(layer.W.dtype)
    with torch.no_grad():  # autocast rounds x and bias
        layer.x.copy_(layer.x.to(dtype))
        assert layer.bias is not None
        layer.bias.copy_(layer.bias.to(dtype))
    keep = (torch.rand_like(layer.x) > 0.3) * (1.25)  # a number of 8 bits, as dropout's own need not be
    context = torch.autocast("cpu", dtype) if autocast else contextlib.nullcontext()
    with context, HalfProducts() as products:
        x = layer.x.to(dtype)
        y = FORMS[form](_with(layer, x), x * keep.to(dtype))
        dY = torch.randn(y.shape).to(dtype)
        grads = torch.autograd.grad(y, [*layer.tensors().values()], dY, allow_unused=True)
    assert y.dtype == dtype
    assert products.made == []
    truth = exact_form(form, layer, layer.x * keep)
    assert_close("output", dtype, y, truth)
    wanted = torch.autograd.grad(truth, [*layer.tensors().values()], dY.double(), allow_unused=True)
    for name, grad, want in zip(layer.tensors(), grads, wanted, strict=True):
        assert (grad is None) == (want is None), name
        if grad is not None and want is not None:
            assert_close("gradient", dtype, grad, want, name)


def _with(layer: Any, x: Tensor) -> Any:
    """The same parameters beside another x."""
    copy = type(layer)(**vars(layer))
    copy.x = x
    return copy


@dtypes
@pytest.mark.parametrize("use_dora", [True, False])
def test_embedding(use_dora: bool, dtype: torch.dtype) -> None:
    stock = adapted(nn.Embedding(30, 16), dtype=dtype, use_dora=use_dora)
    model, ids = on_engine(stock), torch.arange(12).view(3, 4)
    with HalfProducts() as products:
        y = model(ids)
        y.sum().backward()
    assert products.made == []
    assert_close("peft", dtype, y, stock(ids))
    assert layer_of(model).lora_embedding_B["default"].grad is not None


@dtypes
def test_attention(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    own, lengths = torch.arange(12), (2, 6)
    found = []
    for kind in (dtype, torch.float64):
        torch.manual_seed(1)
        states = [torch.randn(12, 2, 8).to(dtype).to(kind).requires_grad_() for _ in range(3)]
        layout = lay_out(own, *lengths, 0, 2, 2, kind)
        with HalfProducts() as products:
            out = attend(*states, layout, 0.3)
            grads = torch.autograd.grad(out.sum(), states)
        assert products.made == []
        found.append([out, *grads])
    for one, exact in zip(*found, strict=True):
        assert one.dtype == dtype
        assert_close("gradient", dtype, one, exact)


@dtypes
@pytest.mark.parametrize("trained", [False, True])
def test_head(trained: bool, dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    values = [torch.randn(12, 16).to(dtype), torch.randn(30, 16).to(dtype)]
    targets, found = torch.randint(0, 30, (12,)), []
    for kind in (dtype, torch.float64):
        hidden, weight = (value.to(kind).requires_grad_() for value in values)
        with HalfProducts() as products:
            if kind is torch.float64:
                log_probs = (hidden @ weight.T).log_softmax(dim=1)[torch.arange(12), targets]
            else:
                log_probs, *_ = token_scores(
                    hidden, targets, weight if trained else weight.detach(), None, SpeedupSettings()
                )
            grads = torch.autograd.grad(log_probs.sum(), [hidden, weight] if trained else [hidden])
        assert products.made == []
        found.append([log_probs, *grads])
    for one, exact in zip(*found, strict=True):
        assert_close("gradient", dtype, one, exact)
