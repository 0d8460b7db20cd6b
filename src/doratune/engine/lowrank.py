"""Products with an adapter's thin factors, in the forms that libraries are fastest at.

The scaling s goes into the product that makes a thin matrix, in its accumulator: no pass of its own over
anything, and no further rounding. Only behind float32 products by oneDNN it is a pass over the thin matrix.
"""

from __future__ import annotations

import torch
from torch import Tensor

from doratune.engine.products import left_to_onednn, mm
from doratune.engine.widened import is_widened, widened_mm


def scaled_mm(a: Tensor, b: Tensor, scaling: float) -> Tensor:
    """``scaling · a b``.

    Args:
        a: (n, k), floating.
        b: (k, p), a's dtype.
        scaling: Of the product.

    Returns:
        (n, p) in a's dtype.
    """
    if left_to_onednn(a):
        return mm(a, b).mul_(scaling)
    if is_widened(a):
        return widened_mm(a, b, scaling)
    # With beta = 0 the first argument is not read.
    return torch.addmm(a.new_empty(()), a, b, beta=0, alpha=scaling)


def with_thin(a: Tensor, b: Tensor, thin: Tensor, factor: Tensor) -> Tensor:
    """``a b + thin factor``.

    Args:
        a: (n, k), floating.
        b: (k, p), a's dtype.
        thin: (n, r), a's dtype.
        factor: (r, p), a's dtype.

    Returns:
        (n, p) in a's dtype.
    """
    if a.is_cuda:
        # A GPU's product reads what it is added to while it multiplies, so the large one comes second.
        return torch.mm(thin, factor).addmm_(a, b)
    return add_thin_(mm(a, b), thin, factor)


def add_thin_(total: Tensor, thin: Tensor, factor: Tensor, scaling: float = 1.0) -> Tensor:
    """``total + scaling · thin factor``, in place.

    Args:
        total: (n, p), floating.
        thin: (n, r), total's dtype.
        factor: (r, p), total's dtype.
        scaling: Of the product.

    Returns:
        ``total``.
    """
    if is_widened(total):
        return widened_mm(thin, factor, scaling, onto=total)
    return total.addmm_(thin, factor, alpha=scaling)


def down_gradient(T: Tensor, x: Tensor, dtype: torch.dtype) -> Tensor:
    """``Tᵀ x``.

    Args:
        T: (N, r), floating.
        x: (N, d_in), T's dtype.
        dtype: Of the result.

    Returns:
        (r, d_in), contiguous.
    """
    if T.is_cuda:
        return _unrounded(T.T, x, dtype)
    # On a CPU, oneDNN takes up to twice as long over a thin matrix read by columns; a copy is small.
    return mm(T.T.contiguous(), x).to(dtype)


def up_gradient(dZ: Tensor, h: Tensor, dtype: torch.dtype) -> Tensor:
    """``dZᵀ h``.

    Args:
        dZ: (N, d_out), floating.
        h: (N, r), dZ's dtype.
        dtype: Of the result.

    Returns:
        (d_out, r), contiguous.
    """
    if dZ.is_cuda:
        return _unrounded(dZ.T, h, dtype)
    # A copy that does not change the dtype leaves the strides as they are.
    return mm(h.T.contiguous(), dZ).T.to(dtype, memory_format=torch.contiguous_format).contiguous()


def _unrounded(a: Tensor, b: Tensor, dtype: torch.dtype) -> Tensor:
    """``a b`` on a GPU, to float32 without a rounding to the dtype of a and b in between."""
    if dtype == torch.float32 and a.dtype in (torch.bfloat16, torch.float16):
        return torch.mm(a, b, out_dtype=dtype)
    return (a @ b).to(dtype)
