"""Products made otherwise than PyTorch makes them, beside float64, on any CPU and of any layout."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from doratune.engine import products, widened
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


@pytest.fixture
def parts(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Rows of each product in parts, on a machine as if it had AMX and two threads."""
    rows: list[int] = []
    whole = torch.mm

    def counted(a: Tensor, b: Tensor, *, out: Tensor) -> Tensor:
        rows.append(a.shape[0])
        return whole(a, b, out=out)

    monkeypatch.setattr(products, "_has_amx", lambda: True)
    monkeypatch.setattr(widened, "_lacks_products", lambda _dtype: False)
    monkeypatch.setattr(torch, "get_num_threads", lambda: products.THREADS)
    monkeypatch.setattr(torch, "mm", counted)
    return rows


@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize(("n", "k", "p"), [(1000, 576, 576), (1024, 1536, 576), (768, 640, 768)])
def test_parts_of_rows_make_the_product(n: int, k: int, p: int, transposed: bool, parts: list[int]) -> None:
    torch.manual_seed(0)
    a = torch.randn(n, k).bfloat16()
    b = torch.randn(p, k).bfloat16().T if transposed else torch.randn(k, p).bfloat16()
    exact = a.double() @ b.double()
    found = mm(a, b)
    # One rounding to 8 bits, of sums in float32.
    torch.testing.assert_close(found.double(), exact, rtol=2.0**-8, atol=1e-4)
    assert found.dtype == torch.bfloat16 and found.is_contiguous()
    assert sum(parts) == n and max(parts) < p and len(parts) > 1


def test_other_sizes_and_machines_make_it_whole(parts: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    def multiply(n: int, k: int, p: int, dtype: torch.dtype = torch.bfloat16) -> None:
        mm(torch.randn(n, k).to(dtype), torch.randn(k, p).to(dtype))

    multiply(500, 576, 576)  # fewer rows than columns
    multiply(1152, 576, 576)  # twice as many
    multiply(1000, 32, 576)  # an adapter's
    multiply(1000, 576, 1536)
    multiply(600, 576, 576, torch.float32)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 1)
    multiply(600, 576, 576)
    monkeypatch.setattr(torch, "get_num_threads", lambda: products.THREADS)
    monkeypatch.setattr(products, "_has_amx", lambda: False)
    multiply(600, 576, 576)
    monkeypatch.setattr(products, "_has_amx", lambda: True)
    monkeypatch.setattr(torch.backends.mkldnn, "enabled", False)
    multiply(600, 576, 576)
    assert not parts
