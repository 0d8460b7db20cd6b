"""Functions for use inside kernels."""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def halves(values):
    """Two bfloat16 tensors whose sum keeps 16 bits of each value."""
    wide = values.to(tl.float32)
    high = wide.to(tl.bfloat16)
    return high, (wide - high.to(tl.float32)).to(tl.bfloat16)


@triton.jit
def over_norm(numerator, norm, columns, there):
    """``engine.weight_norm.over_norm`` for some columns, in float32."""
    n = tl.load(norm + columns, mask=there, other=1.0)
    return tl.where(n == 0.0, 0.0, numerator.to(tl.float32) / tl.where(n == 0.0, 1.0, n))
