"""Products with thin factors beside float64: any scaling and shape, and nothing of what memory held."""

from __future__ import annotations

import pytest
import torch

from doratune.engine.lowrank import down_gradient, scaled_mm, up_gradient, with_thin

ROUNDING = {torch.bfloat16: 2**-8, torch.float16: 2**-10, torch.float32: 1e-6, torch.float64: 1e-13}
"""Of one rounding to the dtype, or of sums in it, as a share of the largest value."""


def assert_rounded(actual: torch.Tensor, exact: torch.Tensor, *, times: int = 1) -> None:
    scale = exact.abs().max().item() if exact.numel() else 0.0
    torch.testing.assert_close(actual.double(), exact, rtol=0, atol=times * ROUNDING[actual.dtype] * scale)


def leave_nans(*shape: int, dtype: torch.dtype) -> None:
    """Fill memory that the next tensor of this shape is likely to take."""
    for _ in range(4):
        torch.full(shape, torch.nan, dtype=dtype)


@pytest.mark.parametrize("scaling", [2.0, 0.0, 16 / 3**0.5])
@pytest.mark.parametrize("dtype", list(ROUNDING))
@pytest.mark.parametrize(
    ("rows", "inner", "rank"), [(5, 7, 3), (300, 576, 32), (0, 8, 4), (8, 0, 4), (8, 4, 0)]
)
def test_scaled_product(rows: int, inner: int, rank: int, dtype: torch.dtype, scaling: float) -> None:
    torch.manual_seed(0)
    a, b = torch.randn(rows, inner, dtype=dtype), torch.randn(rank, inner, dtype=dtype).T
    exact = scaling * (a.double() @ b.double())
    leave_nans(rows, rank, dtype=dtype)
    product = scaled_mm(a, b, scaling)
    assert product.dtype == dtype
    assert_rounded(product, exact)


@pytest.mark.parametrize(
    "device",
    [
        "cpu",
        pytest.param(
            "cuda",
            marks=[pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA")],
        ),
    ],
)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
@pytest.mark.parametrize("rank", [3, 32])
def test_sum_with_a_thin_product(rank: int, dtype: torch.dtype, device: str) -> None:
    torch.manual_seed(0)
    a, b = torch.randn(300, 96, dtype=dtype, device=device), torch.randn(80, 96, dtype=dtype, device=device).T
    thin = torch.randn(300, rank, dtype=dtype, device=device)
    factor = torch.randn(rank, 80, dtype=dtype, device=device)
    exact = a.double() @ b.double() + thin.double() @ factor.double()
    total = with_thin(a, b, thin, factor)
    assert total.dtype == dtype
    assert_rounded(total, exact, times=2)  # the first product's and the sum's


@pytest.mark.parametrize("dtype", list(ROUNDING))
@pytest.mark.parametrize(("rows", "rank", "width"), [(5, 3, 7), (300, 32, 576), (0, 4, 8), (8, 0, 4)])
def test_gradients_of_the_factors(rows: int, rank: int, width: int, dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    thin, wide = torch.randn(rows, rank, dtype=dtype), torch.randn(rows, width, dtype=dtype)
    exact = thin.double().T @ wide.double()
    for gradient, right in (
        (down_gradient(thin, wide, dtype), exact),
        (up_gradient(wide, thin, dtype), exact.T),
    ):
        assert gradient.dtype == dtype and gradient.is_contiguous()
        assert_rounded(gradient, right)
