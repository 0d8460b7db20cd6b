"""The LoRA and the DoRA linear layer as one autograd function.

Forward, with g = m / n (g = 0 where n = 0; g = 1 without a magnitude, which is LoRA)::

    h = s·x Aᵀ            (N, r)
    z = x Wᵀ + h Bᵀ       (N, d_out)
    y = g ⊙ z + b

Backward, with n constant (arXiv 2402.09353, section 4.3)::

    dZ = g ⊙ dY           dm = Σ(dY ⊙ z) / n        db = Σ dY
    T  = s·dZ B           dA = Tᵀ x                 dB = dZᵀ h = g ⊙ (dYᵀ h)
    dx = dZ W + T A

and where n has a gradient after all, dn = -m/n · dm. The adapter may read another x than the base weight does
(dropout); each then gets its own term of dx.

One product with W forward and one backward, as for a frozen layer. The products run in x's dtype: the small A
and B are cast to it, x never is. g stays in the norm's dtype, so the magnitude is not rounded to bfloat16.
What is kept for the backward pass is what LoRA keeps, x and h; for z see ``output_recovery.py``.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from doratune.engine.autocast import autocast_off
from doratune.engine.channelwise import column_sums, scale_columns
from doratune.engine.lowrank import add_thin_, down_gradient, scaled_mm, up_gradient, with_thin
from doratune.engine.output_recovery import WeakOutput, hold_pending_outputs, under_checkpoint
from doratune.engine.products import mm
from doratune.engine.scaling import scaling_gradients
from doratune.engine.triton.select import taken
from doratune.engine.weight_norm import over_norm


def adapted_linear(
    x: Tensor,
    W: Tensor,
    A: Tensor,
    B: Tensor,
    scaling: float,
    bias: Tensor | None,
    *,
    m: Tensor | None = None,
    norm: Tensor | None = None,
    x_adapter: Tensor | None = None,
) -> Tensor:
    """``g ⊙ (x Wᵀ + s·(x_adapter Aᵀ)Bᵀ) + b`` with ``g = m / norm``, computed in x's dtype.

    Args:
        x: Input, (..., d_in), already in autocast's dtype where autocast is on.
        W: Frozen base weight, (d_out, d_in), any strides; no gradient is computed for it.
        A: Down projection, (r, d_in), any floating dtype; its gradient has the same.
        B: Up projection, (d_out, r), likewise.
        scaling: LoRA's s.
        bias: (d_out,) or None.
        m: Magnitude, (d_out,), any floating dtype; None for LoRA.
        norm: ‖W + s·B·A‖ per row, (d_out,); given with m. Detached, unless its gradient is wanted.
        x_adapter: What the adapter reads instead of x, of x's shape and dtype.

    Returns:
        (..., d_out) in x's dtype.

    Raises:
        RuntimeError: From PyTorch, if the shapes do not fit.
    """
    rows = x.reshape(-1, x.shape[-1])
    adapter_rows = None if x_adapter is None else x_adapter.reshape(rows.shape)
    if torch.compiler.is_compiling():
        y = _composite(rows, adapter_rows, W, A, B, m, norm, scaling, bias)
    else:
        y: Any = _AdaptedLinear.apply(rows, adapter_rows, W, A, B, m, norm, scaling, bias)
    return y.view(*x.shape[:-1], W.shape[0])


def _composite(
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
    """The same out of PyTorch's own operations, for a compiler to fuse and to decide what is kept."""
    with autocast_off(x.device):
        h = (x if x_adapter is None else x_adapter) @ A.to(x.dtype).T
        z = x @ W.to(x.dtype).T + scaling * (h @ B.to(x.dtype).T)
        if m is not None and norm is not None:
            z = (z * over_norm(m, norm)).to(x.dtype)
        return z if bias is None else z + bias.to(x.dtype)


class _AdaptedLinear(torch.autograd.Function):
    """x is (N, d_in) here; see the module for the equations."""

    @staticmethod
    def forward(
        ctx: Any,
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
        needs_x, needs_adapter, _, needs_A, needs_B, needs_m, needs_norm = ctx.needs_input_grad[:7]
        needs_dots = needs_m or needs_norm
        with autocast_off(x.device):
            h = scaled_mm(x if x_adapter is None else x_adapter, A.to(x.dtype).T, scaling)
            y = _output(x, h, W, B, m, norm, bias)
        ctx.scaling, ctx.adapter_apart = scaling, x_adapter is not None
        ctx.dtypes = A.dtype, B.dtype
        # z is (y - b) / g, if y outlives the forward pass.
        keeps = needs_dots and under_checkpoint()
        ctx.output = WeakOutput(y) if needs_dots and not keeps else None
        ctx.save_for_backward(
            x if needs_dots or (needs_A and x_adapter is None) else None,
            x_adapter if needs_A else None,
            W if needs_x or needs_dots else None,
            A if needs_x or needs_adapter else None,
            B if needs_x or needs_adapter or needs_A or needs_dots else None,
            h if needs_B or needs_dots else None,
            m,  # with the norm, for g: the parameter is there anyway
            norm,
            bias,
            y if keeps else None,
        )
        return y

    @staticmethod
    @once_differentiable
    def backward(  # pyright: ignore[reportIncompatibleMethodOverride]
        ctx: Any, dY: Tensor
    ) -> tuple[Tensor | None, ...]:
        hold_pending_outputs()
        x, x_adapter, W, A, B, h, m, norm, bias, y = ctx.saved_tensors
        needs_x, needs_adapter, _, needs_A, needs_B, needs_m, needs_norm = ctx.needs_input_grad[:7]
        dtype_A, dtype_B = ctx.dtypes
        dx: Any = None
        dx_adapter = dA = dB = dm = dn = db = None
        with autocast_off(dY.device):  # a backward pass may run inside an autocast that the forward did not
            g = _scale(m, norm)
            if needs_m or needs_norm:
                y = y if y is not None or ctx.output is None else ctx.output.take()
                dZ, dm = scaling_gradients(
                    dY, y, m, norm, bias, lambda: _product(x, h, W, B), source=(x, W, h, B), g=g
                )
                del y  # perhaps nobody else holds it any more
                if needs_norm:
                    dn = -over_norm(m * dm, norm)
            else:
                dZ = dY if m is None else _scaled(dY, over_norm(m, norm) if g is None else g)
            T: Any = None
            if needs_x or needs_adapter or needs_A:
                T = scaled_mm(dZ, B.to(dY.dtype), ctx.scaling)
            on_gpu, has_both = dZ.is_cuda, needs_x and not ctx.adapter_apart
            if has_both and on_gpu:
                dx = with_thin(dZ, W.to(dY.dtype), T, A.to(dY.dtype))
            elif needs_x:
                dx = mm(dZ, W.to(dY.dtype))
            if needs_B and on_gpu:
                dB = up_gradient(dZ, h, dtype_B)
            del dZ  # as large as the output: its memory serves for what follows
            if needs_B and not on_gpu:  # of dY, which spares dZ's memory for a pass over a thin matrix
                dB = up_gradient(dY, h, dtype_B)
                dB = dB if g is None else dB.mul_(g[:, None])
            if has_both and not on_gpu:  # only now, when dZ is gone
                add_thin_(dx, T, A.to(dY.dtype))
            if needs_adapter:
                dx_adapter = mm(T, A.to(dY.dtype))
            if needs_A:
                dA = down_gradient(T, x_adapter if ctx.adapter_apart else x, dtype_A)
            if ctx.needs_input_grad[8]:
                db = column_sums(dY, bias.dtype)
        return dx, dx_adapter, None, dA, dB, dm if needs_m else None, dn, None, db


def _output(
    x: Tensor, h: Tensor, W: Tensor, B: Tensor, m: Tensor | None, norm: Tensor | None, bias: Tensor | None
) -> Tensor:
    """``g ⊙ (x Wᵀ + h Bᵀ) + bias``."""
    if m is None or norm is None:
        y = _product(x, h, W, B)
        return y if bias is None else y.add_(bias)
    if taken(x, m, norm):
        from doratune.engine.triton import magnitude_forward

        if h.shape[1] <= magnitude_forward.RANKS:
            return magnitude_forward.add_and_scale_(mm(x, W.to(x.dtype).T), h, B.contiguous(), m, norm, bias)
        y = _product(x, h, W, B)
        return magnitude_forward.scale(y, m, norm, y, bias)
    y = _product(x, h, W, B)
    return scale_columns(y, over_norm(m, norm), out=y, bias=bias)


def _scale(m: Tensor | None, norm: Tensor | None) -> Tensor | None:
    """g, but on a GPU, where kernels divide by themselves."""
    return None if m is None or norm is None or norm.is_cuda else over_norm(m, norm)


def _scaled(dY: Tensor, g: Tensor) -> Tensor:
    """``g ⊙ dY``."""
    return scale_columns(dY, g, out=torch.empty_like(dY))


def _product(x: Tensor, h: Tensor, W: Tensor, B: Tensor) -> Tensor:
    """``x Wᵀ + h Bᵀ``."""
    return with_thin(x, W.to(x.dtype).T, h, B.to(x.dtype).T)
