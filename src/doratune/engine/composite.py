"""The layer in PyTorch's own operations: for a compiler, and for layers so small that overhead dominates.

An operation costs a few microseconds however small its tensors are, and Python code called from the backward
pass costs tens. So a small layer leaves the backward pass to PyTorch, and a small DoRA layer forms
V = W + s·B·A, whose norms it needs anyway::

    y = g ⊙ (x Vᵀ) + b        g = m / n        n = ‖V‖ per row
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn.functional import linear

from doratune.engine._internals import unsafe_view
from doratune.engine.autocast import autocast_off, is_autocast
from doratune.engine.matmul import is_widened
from doratune.engine.weight_norm import over_norm

SMALL_ELEMENTS = 1 << 15
"""A layer is small if x, the output and, for DoRA, W have at most this many elements each."""

Norm = Tensor | Callable[[], Tensor]
"""‖W + s·B·A‖ per row, (d_out,), or a function that returns it."""


def is_small(x: Tensor, W: Tensor, A: Tensor, B: Tensor, m: Tensor | None, bias: Tensor | None) -> bool:
    """Whether ``small_linear`` computes the layer: small, in one dtype, for DoRA float32 or float64."""
    dtype, elements = x.dtype, x.numel()
    if elements > SMALL_ELEMENTS or W.dtype != dtype or A.dtype != dtype or B.dtype != dtype:
        return False
    if bias is not None and bias.dtype != dtype:
        return False
    d_out, d_in = W.shape
    if elements * d_out > SMALL_ELEMENTS * d_in or is_autocast(x.device.type):
        return False
    if m is None:
        return not is_widened(x)
    return d_out * d_in <= SMALL_ELEMENTS and m.dtype == dtype and dtype in (torch.float32, torch.float64)


def small_linear(
    x: Tensor,
    W: Tensor,
    A: Tensor,
    B: Tensor,
    m: Tensor | None,
    norm: Norm | None,
    scaling: float,
    bias: Tensor | None,
) -> Tensor:
    """``adapted_linear`` for a small layer; computes the norm itself unless it is given as a tensor."""
    if m is None:
        rows = x if x.ndim == 2 else x.reshape(-1, x.shape[-1])
        y = torch.addmm(linear(rows, W, bias), linear(rows, A) * scaling, B.T)
        # Not a view for autograd: see ``adapted_linear``.
        return y if x.ndim == 2 else unsafe_view(y, (*x.shape[:-1], y.shape[1]))
    V = torch.addmm(W, B, A, alpha=scaling)
    if isinstance(norm, Tensor):
        g = over_norm(m, norm).to(x.dtype)
    else:
        with torch.no_grad():
            n = torch.linalg.vector_norm(V, dim=1)
            n.masked_fill_(n == 0, torch.inf)
        g = m / n
    z = linear(x, V)
    return z * g if bias is None else torch.addcmul(bias, z, g)


def composite(
    x: Tensor,
    x_adapter: Tensor | None,
    W: Tensor,
    A: Tensor,
    B: Tensor,
    m: Tensor | None,
    norm: Tensor | None,
    scaling: float,
    bias: Tensor | None,
) -> Tensor:
    """``adapted_linear`` for a compiler, which fuses it and decides what to save; x is (N, d_in)."""
    with autocast_off(x.device):
        h = (x if x_adapter is None else x_adapter) @ A.to(x.dtype).T
        z = x @ W.to(x.dtype).T + scaling * (h @ B.to(x.dtype).T)
        if m is not None and norm is not None:
            z = (z * over_norm(m, norm)).to(x.dtype)
        return z if bias is None else z + bias.to(x.dtype)
