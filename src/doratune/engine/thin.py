"""Products with an adapter's thin factors, in the forms that CPU libraries are fastest at.

The scaling s goes into the product that makes a thin matrix, in its accumulator: no pass of its own over
anything, and no further rounding. Only behind float32 products by oneDNN it is a pass over the thin matrix.
"""

from __future__ import annotations

import torch
from torch import Tensor

from doratune.engine.products import left_to_onednn, mm


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
    # With beta = 0 the first argument is not read.
    return torch.addmm(a.new_empty(()), a, b, beta=0, alpha=scaling)


def thin_gradient(thin: Tensor, wide: Tensor) -> Tensor:
    """``thinᵀ wide``, the gradient of a factor of rank r.

    Args:
        thin: (N, r), floating.
        wide: (N, d), thin's dtype.

    Returns:
        (r, d) in their dtype.
    """
    # On a CPU, oneDNN takes up to twice as long over a thin matrix read by columns; a copy is small.
    return mm(thin.T.contiguous(), wide)
