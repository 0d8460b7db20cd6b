"""Gradients of the factors, compared with float64."""

from __future__ import annotations

import pytest
import torch

from doratune.engine.lowrank import down_gradient, up_gradient

ROUNDING = {torch.bfloat16: 2**-8, torch.float16: 2**-10, torch.float32: 1e-6, torch.float64: 1e-13}
"""Of one rounding to the dtype, or of sums in it, as a share of the largest value."""


def assert_rounded(actual: torch.Tensor, exact: torch.Tensor) -> None:
    scale = exact.abs().max().item() if exact.numel() else 0.0
    torch.testing.assert_close(actual.double(), exact, rtol=0, atol=ROUNDING[actual.dtype] * scale)


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
