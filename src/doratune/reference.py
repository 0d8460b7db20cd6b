"""DoRA as the paper writes it: dense, float64, obvious. The specification and the tests' oracle.

Equation 5 of arXiv 2402.09353, with the weight stored as (d_out, d_in) so that the paper's column norm
is a norm over each output row, and LoRA's scaling s written out::

    V  = W + s·B·A
    n  = ‖V‖ per output row
    W' = (m / n) V
    y  = x W'ᵀ + b

Section 4.3 of the paper treats n as a constant in the backward pass (``detach_norm=True``). A row with
n = 0 has no direction; it gives an output of zero instead of 0/0.

Everything here forms the (d_out, d_in) matrix V and is slow on purpose; gradients come from autograd.
"""

from __future__ import annotations

import torch
from torch import Tensor


def row_norm(W: Tensor, A: Tensor, B: Tensor, scaling: float) -> Tensor:
    """Norm of each row of W + s·B·A.

    Args:
        W: Base weight, (d_out, d_in).
        A: Down projection, (r, d_in).
        B: Up projection, (d_out, r).
        scaling: LoRA's s.

    Returns:
        (d_out,), float64, attached to the graph; a zero row has a zero gradient.

    Raises:
        RuntimeError: From PyTorch, if the shapes do not fit.
    """
    squared = _direction(W, A, B, scaling).square().sum(dim=1)
    is_zero = squared == 0
    # The square root has an infinite slope at zero, so take the root of 1 there and put the zero back after.
    return torch.where(is_zero, 0.0, torch.where(is_zero, 1.0, squared).sqrt())


def merge(W: Tensor, A: Tensor, B: Tensor, m: Tensor, scaling: float, *, detach_norm: bool = True) -> Tensor:
    """The merged weight W' = (m / n) (W + s·B·A).

    Args:
        W: Base weight, (d_out, d_in).
        A: Down projection, (r, d_in).
        B: Up projection, (d_out, r).
        m: Magnitude, (d_out,).
        scaling: LoRA's s.
        detach_norm: Treat n as a constant in the backward pass (section 4.3).

    Returns:
        (d_out, d_in), float64.

    Raises:
        RuntimeError: From PyTorch, if the shapes do not fit.
    """
    n = row_norm(W, A, B, scaling)
    if detach_norm:
        n = n.detach()
    g = torch.where(n == 0, 0.0, m.double() / torch.where(n == 0, 1.0, n))
    return g[:, None] * _direction(W, A, B, scaling)


def forward(
    x: Tensor,
    W: Tensor,
    A: Tensor,
    B: Tensor,
    m: Tensor,
    scaling: float,
    bias: Tensor | None = None,
    *,
    detach_norm: bool = True,
) -> Tensor:
    """The output x W'ᵀ + b of a DoRA layer.

    Args:
        x: Input, (..., d_in).
        W: Base weight, (d_out, d_in).
        A: Down projection, (r, d_in).
        B: Up projection, (d_out, r).
        m: Magnitude, (d_out,).
        scaling: LoRA's s.
        bias: (d_out,) or None; added as it is, never scaled.
        detach_norm: Treat n as a constant in the backward pass (section 4.3).

    Returns:
        (..., d_out), float64. Gradients reach every argument that requires one, in its own dtype.

    Raises:
        RuntimeError: From PyTorch, if the shapes do not fit.
    """
    y = x.double() @ merge(W, A, B, m, scaling, detach_norm=detach_norm).T
    return y if bias is None else y + bias.double()


def _direction(W: Tensor, A: Tensor, B: Tensor, scaling: float) -> Tensor:
    return W.double() + scaling * (B.double() @ A.double())
