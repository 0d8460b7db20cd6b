"""The DoRA linear layer as one autograd function.

Forward, with g = m / n (g = 0 where n = 0)::

    h = x Aᵀ              (N, r)
    z = x Wᵀ + s·h Bᵀ     (N, d_out)
    y = g ⊙ z + b

Backward, with n constant (arXiv 2402.09353, section 4.3)::

    dZ = g ⊙ dY           dm = Σ(dY ⊙ z) / n        db = Σ dY
    T  = dZ B             dA = s·Tᵀ x               dB = s·dZᵀ h
    dx = dZ W + s·T A

One product with W forward and one backward, as for a frozen layer. The products run in x's dtype: the small A
and B are cast to it, x never is. g stays in the norm's dtype, so the magnitude is not rounded to bfloat16.
"""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from doratune.engine.norm import CHUNK_ELEMENTS


def autocast_off(device: torch.device) -> AbstractContextManager[Any]:
    """A context in which autocast leaves the dtypes of matrix products on ``device`` alone."""
    if torch.amp.is_autocast_available(device.type):
        return torch.autocast(device.type, enabled=False)
    return nullcontext()


def dora_linear(
    x: Tensor, W: Tensor, A: Tensor, B: Tensor, m: Tensor, norm: Tensor, scaling: float, bias: Tensor | None
) -> Tensor:
    """``g ⊙ (x Wᵀ + s·(x Aᵀ)Bᵀ) + b`` with ``g = m / norm``, computed in x's dtype.

    Args:
        x: Input, (..., d_in), already in autocast's dtype where autocast is on.
        W: Frozen base weight, (d_out, d_in); no gradient is computed for it.
        A: Down projection, (r, d_in), any floating dtype; its gradient has the same.
        B: Up projection, (d_out, r), likewise.
        m: Magnitude, (d_out,), likewise.
        norm: ‖W + s·B·A‖ per row, (d_out,), detached.
        scaling: LoRA's s.
        bias: (d_out,) or None.

    Returns:
        (..., d_out) in x's dtype.

    Raises:
        RuntimeError: From PyTorch, if the shapes do not fit.
    """
    y: Any = _DoraLinear.apply(x.reshape(-1, x.shape[-1]), W, A, B, m, norm, scaling, bias)
    return y.view(*x.shape[:-1], W.shape[0])


class _DoraLinear(torch.autograd.Function):
    """x is (N, d_in) here; see the module for the equations."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        W: Tensor,
        A: Tensor,
        B: Tensor,
        m: Tensor,
        norm: Tensor,
        scaling: float,
        bias: Tensor | None,
    ) -> Tensor:
        g = _over_norm(m, norm)
        h = x @ A.to(x.dtype).T
        z = (x @ W.to(x.dtype).T).addmm_(h, B.to(x.dtype).T, alpha=scaling)
        # z ⊙ g in the wider of the two dtypes, rounded once, without a copy of z in that dtype.
        y = torch.mul(z, g, out=torch.empty_like(z))
        if bias is not None:
            y += bias
        needs_x, _, needs_A, needs_B, needs_m = ctx.needs_input_grad[:5]
        ctx.scaling = scaling
        ctx.dtypes = (A.dtype, B.dtype, m.dtype, None if bias is None else bias.dtype)
        ctx.save_for_backward(
            W if needs_x else None,
            A if needs_x else None,
            B if needs_x or needs_A else None,
            x if needs_A else None,
            h if needs_B else None,
            z if needs_m else None,
            norm if needs_m else None,
            g,
        )
        return y

    @staticmethod
    @once_differentiable
    def backward(  # pyright: ignore[reportIncompatibleMethodOverride]
        ctx: Any, dY: Tensor
    ) -> tuple[Tensor | None, ...]:
        W, A, B, x, h, z, norm, g = ctx.saved_tensors
        needs_x, _, needs_A, needs_B, needs_m = ctx.needs_input_grad[:5]
        needs_bias = ctx.needs_input_grad[7]
        dtype_A, dtype_B, dtype_m, dtype_bias = ctx.dtypes
        dx = dA = dB = dm = db = None
        with autocast_off(dY.device):  # a backward pass may run inside an autocast that the forward did not
            dZ = torch.mul(dY, g, out=torch.empty_like(dY))
            if needs_x or needs_A:
                T = dZ @ B.to(dY.dtype)
                if needs_x:
                    dx = (dZ @ W.to(dY.dtype)).addmm_(T, A.to(dY.dtype), alpha=ctx.scaling)
                if needs_A:
                    dA = (T.T @ x).to(dtype_A).mul_(ctx.scaling)
            if needs_B:
                dB = (dZ.T @ h).to(dtype_B).mul_(ctx.scaling)
            if needs_m:
                dm = _over_norm(_column_dots(dY, z, norm.dtype), norm).to(dtype_m)
            if needs_bias:
                db = dY.sum(dim=0, dtype=dtype_bias)
        return dx, None, dA, dB, dm, None, None, db


def _over_norm(numerator: Tensor, norm: Tensor) -> Tensor:
    """``numerator / norm``, and 0 where the norm is 0, in the norm's dtype at least."""
    return torch.where(norm > 0, numerator / norm, 0)


def _column_dots(dY: Tensor, z: Tensor, dtype: torch.dtype) -> Tensor:
    """Σ(dY ⊙ z) over rows in ``dtype``: float16 products would overflow under loss scaling."""
    rows = max(1, CHUNK_ELEMENTS // max(1, z.shape[1]))
    dots = torch.zeros(z.shape[1], dtype=dtype, device=z.device)
    for dY_rows, z_rows in zip(dY.split(rows), z.split(rows), strict=True):
        dots += (dY_rows.to(dtype) * z_rows).sum(dim=0)
    return dots
