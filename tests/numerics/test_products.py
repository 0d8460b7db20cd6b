"""Products by oneDNN beside float64, on any CPU that has it: of every layout that a layer may come with."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from doratune.engine import products
from doratune.engine.products import left_to_onednn, linear, mm
from doratune.functional import dora_linear, dora_row_norm

ROUNDING = 2e-6
"""Of float32 sums over some hundreds of products, as a share of the largest value."""

pytestmark = pytest.mark.skipif(not torch.backends.mkldnn.is_available(), reason="no oneDNN")


@pytest.fixture(params=[True, False], ids=["oneDNN", "PyTorch's choice"])
def by_onednn(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> bool:
    monkeypatch.setattr(products, "_is_faster_here", lambda: request.param)
    return request.param


def assert_product(a: Tensor, b: Tensor) -> None:
    exact = a.double() @ b.double()
    scale = exact.abs().max().item() if exact.numel() else 0.0
    torch.testing.assert_close(mm(a, b).double(), exact, rtol=0, atol=ROUNDING * scale)


@pytest.mark.parametrize(
    ("n", "k", "p"), [(5, 7, 3), (300, 576, 32), (1, 64, 1), (0, 8, 4), (8, 4, 0), (8, 0, 4)]
)
def test_shapes(n: int, k: int, p: int, by_onednn: bool) -> None:
    torch.manual_seed(0)
    a, b = torch.randn(n, k), torch.randn(k, p)
    assert left_to_onednn(a) == (by_onednn and k > 0)
    assert_product(a, b)


def test_strides(by_onednn: bool) -> None:
    torch.manual_seed(0)
    b = torch.randn(64, 32)
    for a in (
        torch.randn(64, 100).T,
        torch.randn(100, 128)[:, ::2],
        torch.randn(100, 128)[:, 3:67],
        torch.randn(6401)[1:].view(100, 64),
        torch.randn(1, 64).expand(100, 64),
        torch.randn(100, 1).expand(100, 64),
        torch.randn(()).expand(100, 64),
    ):
        assert_product(a, b)
        assert_product(b.T, a.T)


def test_bias(by_onednn: bool) -> None:
    torch.manual_seed(0)
    x, weight, bias = torch.randn(70, 96), torch.randn(80, 96), torch.randn(80)
    exact = x.double() @ weight.double().T + bias.double()
    atol = ROUNDING * exact.abs().max().item()
    torch.testing.assert_close(linear(x, weight, bias).double(), exact, rtol=0, atol=atol)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_other_dtypes_are_left_to_pytorch(dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(products, "_is_faster_here", lambda: True)
    assert not left_to_onednn(torch.randn(4, 4, dtype=dtype))


def test_pytorch_s_switch_is_heeded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(products, "_is_faster_here", lambda: True)
    assert left_to_onednn(torch.randn(4, 4))
    monkeypatch.setattr(torch.backends.mkldnn, "enabled", False)
    assert not left_to_onednn(torch.randn(4, 4))


def test_a_layer_is_the_same_by_either(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    x, W, A, B = torch.randn(70, 96), torch.randn(80, 96), torch.randn(8, 96), torch.randn(80, 8)
    m, dY = torch.rand(80) + 0.5, torch.randn(70, 80)
    found = []
    for faster in (True, False):
        monkeypatch.setattr(products, "_is_faster_here", lambda faster=faster: faster)
        inputs = [tensor.clone().requires_grad_() for tensor in (x, A, B, m)]
        y = dora_linear(inputs[0], W, inputs[1], inputs[2], inputs[3], 0.5)
        found.append([dora_row_norm(W, A, B, 0.5), y.detach(), *torch.autograd.grad(y, inputs, dY)])
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=ROUNDING * float(other.abs().max()))
