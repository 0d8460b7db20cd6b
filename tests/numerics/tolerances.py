"""Every tolerance of the numerical tests, each with its reason. Errors are relative."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor


class Tolerance(NamedTuple):
    relative: float
    reason: str


TOLERANCES: dict[tuple[str, torch.dtype], Tolerance] = {
    ("output", torch.float64): Tolerance(
        1e-13, "sums of a few hundred products, some hundred roundings of 1e-16"
    ),
    ("output", torch.float32): Tolerance(2e-6, "the same with roundings of 6e-8"),
    ("output", torch.bfloat16): Tolerance(
        1.6e-2, "x A, z and y are each rounded to 8 bits (4e-3); measured up to 6e-3"
    ),
    ("output", torch.float16): Tolerance(2e-3, "as bfloat16 with 11 bits (5e-4)"),
    ("gradient", torch.float16): Tolerance(2e-3, "as bfloat16 with 11 bits (5e-4)"),
    ("gradient", torch.float64): Tolerance(1e-13, "as the output"),
    ("gradient", torch.float32): Tolerance(2e-6, "as the output"),
    ("gradient", torch.bfloat16): Tolerance(
        1.6e-2, "as the output: dZ, T and the gradient are rounded to 8 bits"
    ),
    ("norm", torch.float64): Tolerance(1e-13, "three terms of like size, no cancellation"),
    ("norm", torch.float32): Tolerance(1e-6, "the same; a bfloat16 W is exact in float32, so it is no worse"),
    ("gpu norm", torch.float32): Tolerance(
        1.2e-5, "A and B are sums of two bfloat16 matrices, 2⁻¹⁸ off each, as is their product; measured 6e-6"
    ),
    ("peft", torch.float32): Tolerance(5e-6, "PEFT and the engine each add up to 2e-6"),
    ("peft", torch.bfloat16): Tolerance(2e-2, "PEFT adds one rounding to 8 bits to those of the engine"),
    ("peft", torch.float16): Tolerance(3e-3, "as bfloat16 with 11 bits"),
    ("quantised norm", torch.bfloat16): Tolerance(
        1e-3, "U is rounded to 8 bits, but counts only as s·BA does; measured up to 2e-4"
    ),
    ("quantised norm", torch.float32): Tolerance(
        2e-6, "on a CPU bitsandbytes' 8-bit layer multiplies with the dequantised weight"
    ),
    ("unmerge", torch.float32): Tolerance(1e-5, "PEFT's unmerge divides and subtracts in float32"),
    ("loss", torch.float32): Tolerance(
        5e-5, "AdamW turns rounding of small gradients into steps; measured 2e-6, with dropout 1.4e-5"
    ),
}


def relative_error(actual: Tensor, expected: Tensor) -> float:
    """Largest error over the largest expected magnitude; NaN where either side is not finite."""
    assert actual.shape == expected.shape, (actual.shape, expected.shape)
    actual, expected = actual.detach().double(), expected.detach().double()
    if not (actual.isfinite().all() and expected.isfinite().all()):
        return float("nan")
    scale = expected.abs().max().item() if expected.numel() else 0.0
    error = (actual - expected).abs().max().item() if expected.numel() else 0.0
    return error / scale if scale > 0 else error


def assert_close(what: str, dtype: torch.dtype, actual: Tensor, expected: Tensor, name: str = "") -> None:
    """``relative_error`` within the table's tolerance; a NaN fails."""
    allowed = TOLERANCES[what, dtype]
    error = relative_error(actual, expected)
    assert error <= allowed.relative, f"{name or what}: relative error {error:.2e} > {allowed.relative:.0e}"


def assert_elementwise(what: str, dtype: torch.dtype, actual: Tensor, expected: Tensor) -> None:
    """Each element within the table's tolerance of itself: for positive quantities such as norms."""
    torch.testing.assert_close(
        actual.double(), expected.double(), rtol=TOLERANCES[what, dtype].relative, atol=0.0
    )
