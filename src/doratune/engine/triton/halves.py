"""float32 in two bfloat16 parts, inside a kernel."""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def halves(values):
    """Two bfloat16 tensors whose sum has 16 bits of each value."""
    wide = values.to(tl.float32)
    high = wide.to(tl.bfloat16)
    return high, (wide - high.to(tl.float32)).to(tl.bfloat16)
