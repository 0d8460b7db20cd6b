"""Adds the adapter's term to the output of any base layer, for base layers without a plain weight matrix.

    h = s·x Aᵀ      y = z + h Bᵀ      dz = dY      T = s·dY B
    dx = T A        dA = Tᵀ x         dB = dYᵀ h

A and B are cast to z's dtype in each pass, so that no cast copy is saved for the backward pass.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from doratune.engine._internals import unsafe_view
from doratune.engine.autocast import autocast_off
from doratune.engine.few_rows import add_term, are_few
from doratune.engine.lowrank import down_gradient, up_gradient
from doratune.engine.matmul import matmul


def add_update(z: Tensor, x: Tensor, A: Tensor, B: Tensor, scaling: float) -> Tensor:
    """``z + s·(x Aᵀ)Bᵀ`` in z's dtype.

    Args:
        z: (..., d_out), floating.
        x: (..., d_in), any floating dtype.
        A: Down projection, (r, d_in), any floating dtype; its gradient has the same.
        B: Up projection, (d_out, r), likewise.
        scaling: LoRA's s.

    Returns:
        (..., d_out) in z's dtype.

    Raises:
        RuntimeError: From PyTorch, if the shapes do not fit.
    """
    if torch.compiler.is_compiling():
        x = x.to(z.dtype)
        with autocast_off(z.device):
            return z + scaling * (x @ A.to(z.dtype).T) @ B.to(z.dtype).T
    rows, x = z.reshape(-1, z.shape[-1]), x.reshape(-1, x.shape[-1])
    if not torch.is_grad_enabled():
        return _without_gradients(rows, x, A, B, scaling).view(z.shape)
    y: Any = _Update.apply(rows, x.to(z.dtype), A, B, scaling)
    return unsafe_view(y, z.shape)  # not a view for autograd, so that it may be changed in place


def _without_gradients(z: Tensor, x: Tensor, A: Tensor, B: Tensor, scaling: float) -> Tensor:
    """``add_update`` for z (N, d_out) and x (N, d_in), where nothing needs a gradient."""
    with autocast_off(z.device):
        y = z.clone(memory_format=torch.contiguous_format)
        if are_few(z):
            return y.copy_(add_term(y, x, A, B, scaling))
        h = matmul(x.to(z.dtype), A.to(z.dtype).T, alpha=scaling)
        return matmul(h, B.to(z.dtype).T, onto=y)


class _Update(torch.autograd.Function):
    """z is (N, d_out) here, x (N, d_in); the module's docstring has the equations."""

    @staticmethod
    def forward(ctx: Any, z: Tensor, x: Tensor, A: Tensor, B: Tensor, scaling: float) -> Tensor:
        ctx.scaling = scaling
        with autocast_off(z.device):
            h = matmul(x, A.to(z.dtype).T, alpha=scaling)
            ctx.save_for_backward(x, A, B, h)
            y = z.clone(memory_format=torch.contiguous_format)
            return matmul(h, B.to(z.dtype).T, onto=y)

    @staticmethod
    @once_differentiable
    def backward(  # pyright: ignore[reportIncompatibleMethodOverride]
        ctx: Any, dY: Tensor
    ) -> tuple[Tensor | None, ...]:
        x, A, B, h = ctx.saved_tensors
        needs_z, needs_x, needs_A, needs_B = ctx.needs_input_grad[:4]
        dx = dA = dB = None
        with autocast_off(dY.device):
            if needs_x or needs_A:
                T = matmul(dY, B.to(dY.dtype), alpha=ctx.scaling)
                dx = matmul(T, A.to(dY.dtype)) if needs_x else None
                dA = down_gradient(T, x, A.dtype) if needs_A else None
            if needs_B:
                dB = up_gradient(dY, h, B.dtype)
        return dY if needs_z else None, dx, dA, dB, None
