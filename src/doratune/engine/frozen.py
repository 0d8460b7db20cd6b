"""A frozen linear layer without an adapter, by the engine's products where PyTorch's own are slower."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn.functional import linear

from doratune.engine.autocast import autocast_off
from doratune.engine.products import made_otherwise, mm


def frozen_linear(x: Tensor, W: Tensor, bias: Tensor | None) -> Tensor:
    """``x Wᵀ + bias``.

    Args:
        x: (..., d_in), floating, already in autocast's dtype where autocast is on.
        W: Frozen, (d_out, d_in), any floating dtype under autocast, else x's.
        bias: (d_out,), likewise, or None.

    Returns:
        (..., d_out) in x's dtype.

    Raises:
        RuntimeError: From PyTorch, if the shapes do not fit.
    """
    rows = x.reshape(-1, x.shape[-1])
    if torch.compiler.is_compiling() or not made_otherwise(rows):
        return linear(x, W, bias)
    y: Any = _Product.apply(rows, W)
    y = y.view(*x.shape[:-1], W.shape[0])
    return y if bias is None else y + bias.to(y.dtype)


class _Product(torch.autograd.Function):
    """x Wᵀ for x (N, d_in) and a constant W (d_out, d_in)."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, W: Tensor) -> Tensor:
        ctx.save_for_backward(W)
        with autocast_off(x.device):
            return mm(x, W.to(x.dtype).T)

    @staticmethod
    @once_differentiable
    def backward(  # pyright: ignore[reportIncompatibleMethodOverride]
        ctx: Any, dy: Tensor
    ) -> tuple[Tensor | None, None]:
        (W,) = ctx.saved_tensors
        if not ctx.needs_input_grad[0]:
            return None, None
        with autocast_off(dy.device):
            return mm(dy, W.to(dy.dtype)), None
