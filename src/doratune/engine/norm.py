"""The norm of each row of V = W + s·B·A, without V.

With U = W Aᵀ (d_out, r) and G = A Aᵀ (r, r)::

    n² = ‖W‖² + 2s·Σ(B ⊙ U) + s²·Σ((B G) ⊙ B)        sums over r

so the largest temporary is U, and ‖W‖² of a frozen W is computed once and passed in. The norm is a
constant of the backward pass (arXiv 2402.09353, section 4.3), so everything here is detached.

Precision: float32, or float64 where an input is float64. Where s·B·A cancels W the three terms are
large and n² is small: with rounding unit ε the relative error of n² is about ε·(‖W‖ + ‖s·B·A‖)²/n². It
is of the order of ε unless a row has shrunk far below its parts; at n = ‖W‖/100 it is 10⁴ ε or more, 0.1 %
in float32. A row that cancels completely comes out as zero or as about √ε‖W‖. The dense sum does not lose
this. TF32 matrix products, where the user has switched them on, apply to U as to any float32 product.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

CHUNK_ELEMENTS = 1 << 22
"""Most elements of W held in a wider dtype at a time: 16 MiB in float32."""


def norm_dtype(*tensors: Tensor) -> torch.dtype:
    """The dtype norms are computed in: float64 if any of the tensors is float64, otherwise float32."""
    return torch.float64 if any(tensor.dtype == torch.float64 for tensor in tensors) else torch.float32


@torch.no_grad()
def row_norm_squared(W: Tensor) -> Tensor:
    """‖W‖² per row.

    Args:
        W: (d_out, d_in), floating.

    Returns:
        (d_out,), float32 (float64 for a float64 W), detached.

    Raises:
        RuntimeError: From PyTorch, if W is not a floating matrix.
    """
    return torch.cat(
        [torch.linalg.vector_norm(rows, dim=1).square() for rows in _row_chunks(W, norm_dtype(W))]
    )


@torch.no_grad()
def dora_row_norm(W: Tensor, A: Tensor, B: Tensor, scaling: float, weight_norm_sq: Tensor) -> Tensor:
    """‖W + s·B·A‖ per row, in the factored form.

    Autocast must be off: it would compute U and G in its lower precision.

    Args:
        W: Base weight, (d_out, d_in), floating.
        A: Down projection, (r, d_in), floating.
        B: Up projection, (d_out, r), floating.
        scaling: LoRA's s.
        weight_norm_sq: ``row_norm_squared(W)``, (d_out,).

    Returns:
        (d_out,), float32 (float64 if W, A or B is), detached, never negative.

    Raises:
        RuntimeError: From PyTorch, if the shapes do not fit.
    """
    dtype = norm_dtype(W, A, B)
    A, B = A.to(dtype), B.to(dtype)
    U = torch.cat([rows @ A.T for rows in _row_chunks(W, dtype)])
    G = A @ A.T
    # 2s·Σ(B ⊙ U) + s²·Σ((B G) ⊙ B) = s·Σ(B ⊙ (2U + s·B G))
    update = scaling * (B * torch.addmm(U, B, G, beta=2, alpha=scaling)).sum(dim=1)
    # Rounding can leave a cancelled row slightly below zero.
    return (weight_norm_sq.to(dtype) + update).clamp_(min=0).sqrt_()


def _row_chunks(W: Tensor, dtype: torch.dtype) -> Iterator[Tensor]:
    """W in ``dtype`` by groups of rows; W whole where no cast is needed."""
    rows = W.shape[0] if W.dtype == dtype else max(1, CHUNK_ELEMENTS // max(1, W.shape[1]))
    for chunk in W.split(max(1, rows)):
        yield chunk.to(dtype)
