"""Scaling columns and summing over rows, compared with float64; no shape, however empty, may crash."""

from __future__ import annotations

import pytest
import torch

from doratune.engine.channelwise import scale_columns, scaled_and_dots

SHAPES = [(0, 8), (1, 8), (8, 1), (64, 48), (0, 5, 3), (2, 5, 0), (2, 5, 1), (3, 5, 7)]
ROUNDING = {torch.bfloat16: 2**-8, torch.float16: 2**-10, torch.float32: 1e-6, torch.float64: 1e-6}
"""Of one rounding to the dtype, as a share of the value; g is float32 at the least precise."""


def across(values: torch.Tensor, shape: tuple[int, ...]) -> torch.Tensor:
    return values.double() if len(shape) == 2 else values.double()[:, None]


@pytest.mark.parametrize("with_bias", [False, True])
@pytest.mark.parametrize("dtype", list(ROUNDING))
@pytest.mark.parametrize("shape", SHAPES)
def test_scaled_columns_and_their_sums(shape: tuple[int, ...], dtype: torch.dtype, with_bias: bool) -> None:
    torch.manual_seed(0)
    z, y = torch.randn(shape, dtype=dtype), torch.randn(shape, dtype=dtype)
    g = torch.rand(shape[1], dtype=torch.float64 if dtype == torch.float64 else torch.float32)
    bias = torch.randn_like(g) if with_bias else None
    shift = across(torch.zeros_like(g) if bias is None else bias, shape)
    tolerance = {"rtol": ROUNDING[dtype], "atol": 1e-6}

    out = scale_columns(z, g, torch.empty_like(z), bias)
    torch.testing.assert_close(out.double(), z.double() * across(g, shape) + shift, **tolerance)

    scaled, dots = scaled_and_dots(z, y, g, bias)
    assert scaled.dtype == dtype and dots.dtype == g.dtype
    torch.testing.assert_close(scaled.double(), z.double() * across(g, shape), **tolerance)
    rows = 0 if len(shape) == 2 else (0, 2)
    torch.testing.assert_close(
        dots.double(), (z.double() * (y.double() - shift)).sum(rows), rtol=1e-5, atol=1e-5
    )


def test_columns_may_be_scaled_in_place_and_read_with_any_strides() -> None:
    torch.manual_seed(0)
    z, g = torch.randn(6, 4, dtype=torch.bfloat16), torch.rand(4)
    wanted = scale_columns(z, g, torch.empty_like(z))
    spread = z.new_ones(1).expand(6, 4)  # as the gradient of a sum comes
    scaled, dots = scaled_and_dots(spread, z.T.contiguous().T, g)
    assert torch.equal(scaled, scale_columns(torch.ones_like(z), g, torch.empty_like(z)))
    torch.testing.assert_close(dots, z.float().sum(0), rtol=1e-5, atol=1e-5)
    assert torch.equal(scale_columns(z, g, z), wanted)


@pytest.mark.parametrize("dtype", list(ROUNDING))
def test_the_output_may_have_any_strides(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    z, g, bias = torch.randn(6, 4, dtype=dtype), torch.rand(4), torch.randn(4)
    out = torch.empty(4, 6, dtype=dtype).T
    for source in (z, z.T.contiguous().T):
        assert torch.equal(scale_columns(source, g, out.zero_(), bias), scale_columns(z, g, z.clone(), bias))


def test_a_default_device_does_not_matter() -> None:
    z, g = torch.randn(3, 1234).bfloat16(), torch.rand(1234)  # of a size that no other test has
    with torch.device("meta"):
        out = scale_columns(z, g, torch.empty_like(z))
    torch.testing.assert_close(out.double(), z.double() * g.double(), rtol=2.0**-8, atol=0)
