"""The adapter's term on a few rows, such as the tokens that a model generates, for calls without gradients.

A product with A or B is then so small that its fixed cost counts. oneDNN takes ten times as long as PyTorch's
float32 product to begin one in bfloat16, and casting a float32 A and B costs as much again. So on a CPU the
term is computed in float32, and rounded with what it is added to.
"""

from __future__ import annotations

import torch
from torch import Tensor

from doratune.engine.matmul import cast, linear, matmul

ROWS = 64
"""At most this many rows are a few; with 128, products in bfloat16 are as fast again."""


def are_few(rows: Tensor) -> bool:
    """Whether rows (N, d) are few, and on a CPU."""
    return rows.is_cpu and rows.shape[0] <= ROWS


def add_term(z: Tensor, x: Tensor, A: Tensor, B: Tensor, scaling: float) -> Tensor:
    """``z + s·(x Aᵀ)Bᵀ`` without gradients, in float32 where z is narrower; autocast must be off.

    Args:
        z: (N, d_out), floating; overwritten by the result if it has the result's dtype.
        x: (N, d_in), floating.
        A: (r, d_in), floating.
        B: (d_out, r), floating.
        scaling: LoRA's s.

    Returns:
        (N, d_out), float32 for a bfloat16 or float16 z, else in z's dtype.

    Raises:
        RuntimeError: From PyTorch, if the shapes do not fit.
    """
    dtype = torch.float32 if z.dtype in (torch.bfloat16, torch.float16) else z.dtype
    h = linear(cast(x, dtype), cast(A, dtype), None)
    return matmul(h, cast(B, dtype).T, alpha=scaling, onto=cast(z, dtype))
