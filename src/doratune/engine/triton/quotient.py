"""``engine.norm.over_norm`` inside a kernel."""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def over_norm(numerator, norm, columns, there):
    """``numerator / norm`` at some columns, 0 where the norm is 0, in float32."""
    n = tl.load(norm + columns, mask=there, other=1.0)
    return tl.where(n == 0.0, 0.0, numerator.to(tl.float32) / tl.where(n == 0.0, 1.0, n))
