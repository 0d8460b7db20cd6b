"""Matrix products in every way, compared with float64, and which way each processor uses."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from doratune.engine import matmul as engine
from doratune.engine.cpu_traits import CpuTraits, cpu_traits
from doratune.engine.matmul import Way, differs_from_pytorch, explain_way, is_widened, linear, matmul, way_of
from doratune.functional import dora_linear, dora_row_norm

ROUNDING = {torch.bfloat16: 2**-8, torch.float16: 2**-10, torch.float32: 2e-6, torch.float64: 1e-13}
"""Of one rounding to the dtype, or of sums in it, as a share of the largest value."""

WAYS = {
    "AMD Zen 3": {torch.float32: Way.PYTORCH, torch.bfloat16: Way.WIDENED, torch.float16: Way.WIDENED},
    "AMD Zen 5": {torch.float32: Way.ONEDNN, torch.bfloat16: Way.PYTORCH, torch.float16: Way.WIDENED},
    "Intel Ice Lake": {torch.float32: Way.PYTORCH, torch.bfloat16: Way.WIDENED, torch.float16: Way.WIDENED},
    "Intel Cooper Lake": {
        torch.float32: Way.PYTORCH,
        torch.bfloat16: Way.PYTORCH,
        torch.float16: Way.WIDENED,
    },
    "Intel Sapphire Rapids": {
        torch.float32: Way.PYTORCH,
        torch.bfloat16: Way.PARTS,
        torch.float16: Way.PYTORCH,
    },
    "Apple M1": {torch.float32: Way.PYTORCH, torch.bfloat16: Way.PYTORCH, torch.float16: Way.PYTORCH},
}

Processor = Callable[[str], None]

pytestmark = pytest.mark.skipif(not torch.backends.mkldnn.is_available(), reason="no oneDNN")


@pytest.fixture(params=["AMD Zen 5", "Intel Ice Lake", "Intel Sapphire Rapids"])
def any_processor(request: pytest.FixtureRequest, processor: Processor) -> str:
    processor(request.param)
    return request.param


def assert_rounded(actual: Tensor, exact: Tensor, *, times: int = 1) -> None:
    scale = exact.abs().max().item() if exact.numel() else 0.0
    torch.testing.assert_close(actual.double(), exact, rtol=0, atol=times * ROUNDING[actual.dtype] * scale)


def assert_product(a: Tensor, b: Tensor) -> None:
    assert_rounded(matmul(a, b), a.double() @ b.double())


def leave_nans(*shape: int, dtype: torch.dtype) -> None:
    """Fill memory that the next tensor of this shape is likely to take."""
    for _ in range(4):
        torch.full(shape, torch.nan, dtype=dtype)


@pytest.mark.parametrize("name", WAYS)
def test_the_way_by_processor_and_dtype(name: str, processor: Processor) -> None:
    processor(name)
    for dtype, way in WAYS[name].items():
        assert way_of(dtype, cpu_traits()) is way, dtype
        assert is_widened(torch.zeros(2, 2, dtype=dtype)) == (way is Way.WIDENED)
    for dtype in (torch.float64, torch.int8):
        assert not differs_from_pytorch(torch.zeros(2, 2, dtype=dtype))
    assert not is_widened(torch.zeros(2, 2, dtype=torch.bfloat16, device="meta"))


def test_this_machine_s_traits() -> None:
    traits, found = cpu_traits(), torch.cpu.get_capabilities()
    assert traits is cpu_traits(), "made once"
    assert traits.x86 == (found["architecture"] == "x86_64")
    assert traits.avx512 == bool(found.get("avx512_f"))
    assert traits.has_bfloat16 == bool(found.get("avx512_bf16") or found.get("amx_bf16"))


def test_traits_without_onednn() -> None:
    none = frozenset[torch.dtype]()
    traits = CpuTraits(
        x86=True, vendor="AMD", avx512=True, avx512_bf16=True, amx_bf16=False, onednn=False, onednn_takes=none
    )
    assert way_of(torch.float32, traits) is Way.PYTORCH
    assert way_of(torch.bfloat16, traits) is Way.WIDENED


@pytest.mark.parametrize(
    ("name", "dtype", "words"),
    [
        ("AMD Zen 3", torch.bfloat16, "widened to float32, since oneDNN lacks bfloat16"),
        ("Intel Ice Lake", torch.bfloat16, "widened to float32, since oneDNN only emulates bfloat16"),
        (
            "Intel Sapphire Rapids",
            torch.bfloat16,
            "oneDNN with AMX, whole; in blocks of rows only with 2 threads",
        ),
        (
            "Intel Cooper Lake",
            torch.bfloat16,
            "oneDNN, with the processor's bfloat16 instructions",
        ),
        ("AMD Zen 5", torch.float32, "oneDNN, faster than MKL"),
        ("Intel Ice Lake", torch.float32, "PyTorch's choice"),
    ],
)
def test_the_way_is_explained(
    name: str, dtype: torch.dtype, words: str, processor: Processor, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch, "get_num_threads", lambda: 1)
    processor(name)
    assert words in explain_way(dtype)


@pytest.mark.parametrize(
    ("n", "k", "p"), [(5, 7, 3), (300, 576, 32), (1, 64, 1), (0, 8, 4), (8, 4, 0), (8, 0, 4)]
)
@pytest.mark.usefixtures("any_processor")
def test_shapes(n: int, k: int, p: int) -> None:
    torch.manual_seed(0)
    assert_product(torch.randn(n, k), torch.randn(k, p))


@pytest.mark.parametrize("alpha", [2.0, 0.0, 16 / 3**0.5])
@pytest.mark.parametrize("dtype", list(ROUNDING))
@pytest.mark.parametrize(("n", "k", "p"), [(5, 7, 3), (300, 576, 32), (0, 8, 4), (8, 0, 4), (8, 4, 0)])
@pytest.mark.usefixtures("any_processor")
def test_alpha_and_onto(n: int, k: int, p: int, dtype: torch.dtype, alpha: float) -> None:
    torch.manual_seed(0)
    a, b = torch.randn(n, k, dtype=dtype), torch.randn(p, k, dtype=dtype).T
    before = torch.randn(n, p, dtype=dtype)
    exact = alpha * (a.double() @ b.double())
    leave_nans(n, p, dtype=dtype)
    product = matmul(a, b, alpha=alpha)
    assert product.dtype == dtype
    assert_rounded(product, exact)
    total = before.clone()
    assert matmul(a, b, alpha=alpha, onto=total) is total
    assert_rounded(total, before.double() + exact)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA")
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_on_a_gpu(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    a, b = (torch.randn(*shape, dtype=dtype, device="cuda") for shape in ((300, 96), (96, 80)))
    thin, factor = (torch.randn(*shape, dtype=dtype, device="cuda") for shape in ((300, 8), (8, 80)))
    exact = a.double() @ b.double() + 2 * thin.double() @ factor.double()
    assert_rounded(matmul(a, b, onto=matmul(thin, factor, alpha=2.0)), exact, times=2)


@pytest.mark.usefixtures("any_processor")
def test_strides() -> None:
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


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.usefixtures("any_processor")
def test_bias(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    x, weight, bias = (torch.randn(*shape, dtype=dtype) for shape in ((70, 96), (80, 96), (80,)))
    exact = x.double() @ weight.double().T + bias.double()
    assert_rounded(linear(x, weight, bias), exact, times=2)


def test_pytorch_s_onednn_switch_is_respected(processor: Processor, monkeypatch: pytest.MonkeyPatch) -> None:
    processor("AMD Zen 5")
    assert differs_from_pytorch(torch.randn(4, 4))
    monkeypatch.setattr(torch.backends.mkldnn, "enabled", False)
    assert not differs_from_pytorch(torch.randn(4, 4))
    assert_product(torch.randn(7, 5), torch.randn(5, 6))


def test_a_layer_is_the_same_on_either_processor(processor: Processor) -> None:
    torch.manual_seed(0)
    x, W, A, B = torch.randn(70, 96), torch.randn(80, 96), torch.randn(8, 96), torch.randn(80, 8)
    m, dY = torch.rand(80) + 0.5, torch.randn(70, 80)
    found = []
    for name in ("AMD Zen 5", "AMD Zen 3"):
        processor(name)
        inputs = [tensor.clone().requires_grad_() for tensor in (x, A, B, m)]
        y = dora_linear(inputs[0], W, inputs[1], inputs[2], inputs[3], 0.5)
        found.append([dora_row_norm(W, A, B, 0.5), y.detach(), *torch.autograd.grad(y, inputs, dY)])
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=2e-6 * float(other.abs().max()))


@pytest.fixture
def parts(processor: Processor, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Rows of each product in parts, on a machine as if it had AMX and two threads."""
    rows: list[int] = []
    whole = torch.mm

    def counted(a: Tensor, b: Tensor, *, out: Tensor | None = None) -> Tensor:
        if out is None:
            return whole(a, b)
        rows.append(a.shape[0])
        return whole(a, b, out=out)

    processor("Intel Sapphire Rapids")
    monkeypatch.setattr(torch, "get_num_threads", lambda: engine.THREADS)
    monkeypatch.setattr(torch, "mm", counted)
    return rows


@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize(("n", "k", "p"), [(1000, 576, 576), (1024, 1536, 576), (768, 640, 768)])
def test_blocks_of_rows_give_the_product(n: int, k: int, p: int, transposed: bool, parts: list[int]) -> None:
    torch.manual_seed(0)
    a = torch.randn(n, k).bfloat16()
    b = torch.randn(p, k).bfloat16().T if transposed else torch.randn(k, p).bfloat16()
    exact = a.double() @ b.double()
    found = matmul(a, b)
    # One rounding to 8 bits, of sums in float32.
    torch.testing.assert_close(found.double(), exact, rtol=2.0**-8, atol=1e-4)
    assert found.dtype == torch.bfloat16 and found.is_contiguous()
    assert sum(parts) == n and max(parts) < p and len(parts) > 1


def test_other_sizes_and_machines_are_not_split(
    parts: list[int], processor: Processor, monkeypatch: pytest.MonkeyPatch
) -> None:
    def multiply(n: int, k: int, p: int, dtype: torch.dtype = torch.bfloat16) -> None:
        matmul(torch.randn(n, k).to(dtype), torch.randn(k, p).to(dtype))

    multiply(500, 576, 576)  # fewer rows than columns
    multiply(1152, 576, 576)  # twice as many
    multiply(1000, 32, 576)  # an adapter's
    multiply(1000, 576, 1536)
    multiply(600, 576, 576, torch.float32)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 1)
    multiply(600, 576, 576)
    monkeypatch.setattr(torch, "get_num_threads", lambda: engine.THREADS)
    processor("AMD Zen 5")
    multiply(600, 576, 576)
    processor("Intel Sapphire Rapids")
    monkeypatch.setattr(torch.backends.mkldnn, "enabled", False)
    multiply(600, 576, 576)
    assert not parts
