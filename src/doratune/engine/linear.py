"""The LoRA and the DoRA linear layer as one autograd function.

Forward, with g = m / n (g = 0 where n = 0; g = 1 without a magnitude, which is LoRA)::

    h = s·x Aᵀ            (N, r)
    z = x Wᵀ + h Bᵀ       (N, d_out)
    y = g ⊙ z + b

Backward, with n constant (arXiv 2402.09353, section 4.3)::

    dZ = g ⊙ dY           dm = Σ(dY ⊙ z) / n        db = Σ dY
    T  = s·dZ B           dA = Tᵀ x                 dB = dZᵀ h = g ⊙ (dYᵀ h)
    dx = dZ W + T A

If n is not detached, dn = -m/n · dm. With dropout, W and the adapter have different inputs, and each input
gets its own term of dx.

Each pass needs one product with W, as for a frozen layer. The products run in x's dtype: the small A and B
are cast to it, x never is. g stays in the norm's dtype, so the magnitude is not rounded to bfloat16. The
layer saves what LoRA saves for the backward pass, x and h; for z see ``output_recovery.py``.

The order of operations that is fastest differs between CPU and GPU, so each has its own functions. Small
layers leave the backward pass to PyTorch: see ``composite.py``. Calls without gradients need no autograd
function, and save and recover nothing.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from doratune.engine._internals import FakeTensor, unsafe_view
from doratune.engine.autocast import autocast_off
from doratune.engine.channelwise import column_sums, scale_columns
from doratune.engine.composite import Norm, composite, is_small, small_linear
from doratune.engine.linear_output import (
    as_rows,
    output_on_cpu,
    output_on_gpu,
    output_without_gradients,
    product_on_cpu,
    product_on_gpu,
)
from doratune.engine.lowrank import down_gradient, up_gradient
from doratune.engine.magnitude import magnitude_gradients, magnitude_gradients_by_kernel
from doratune.engine.matmul import cast, matmul
from doratune.engine.output_recovery import (
    OutputRecovery,
    divisibility,
    hold_pending_outputs,
)
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
    norm: Norm | None = None,
    g: Tensor | None = None,
    x_adapter: Tensor | None = None,
) -> Tensor:
    """``g ⊙ (x Wᵀ + s·(x_adapter Aᵀ)Bᵀ) + b`` with ``g = m / norm``, computed in x's dtype.

    Args:
        x: Input, (..., d_in), already in autocast's dtype where autocast is on.
        W: Frozen base weight, (d_out, d_in), any strides; no gradient is computed for it.
        A: Down projection, (r, d_in), any floating dtype; its gradient has the same.
        B: Up projection, (d_out, r), likewise.
        scaling: LoRA's s.
        bias: (d_out,), any floating dtype, or None.
        m: Magnitude, (d_out,), any floating dtype; None for LoRA.
        norm: ‖W + s·B·A‖ per row, (d_out,), or a function that returns it; required with m. Detached, unless
            its gradient is wanted. A small layer computes the norm itself instead of calling the function.
        g: ``m / norm`` if the caller has it, (d_out,), for calls without gradients.
        x_adapter: The adapter's input if it is not x; of x's shape and dtype.

    Returns:
        (..., d_out) in x's dtype.

    Raises:
        RuntimeError: From PyTorch, if the shapes do not fit.
    """
    if torch.compiler.is_compiling():
        rows = x.reshape(-1, x.shape[-1])
        adapter_rows = None if x_adapter is None else x_adapter.reshape(rows.shape)
        y = composite(rows, adapter_rows, W, A, B, m, _found(norm), scaling, bias)
        return y.view(*x.shape[:-1], W.shape[0])
    with_gradients = torch.is_grad_enabled()
    # Without gradients a small layer is of use only where it computes its own norm.
    computes_norm = not (norm is None or isinstance(norm, Tensor))
    if x_adapter is None and (with_gradients or computes_norm) and is_small(x, W, A, B, m, bias):
        return small_linear(x, W, A, B, m, norm, scaling, bias)
    if not with_gradients:
        return output_without_gradients(x, x_adapter, W, A, B, m, _found(norm), g, scaling, bias)
    result: Any = _AdaptedLinear.apply(x, x_adapter, W, A, B, m, _found(norm), scaling, bias)
    return result


def _found(norm: Norm | None) -> Tensor | None:
    return norm if norm is None or isinstance(norm, Tensor) else norm()


class _AdaptedLinear(torch.autograd.Function):
    """The module's docstring has the equations. x is (..., d_in), and (N, d_in) inside."""

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
        needs_dm = needs_m or needs_norm
        shape, x = x.shape, as_rows(x)
        x_adapter = None if x_adapter is None else as_rows(x_adapter)
        on_gpu, by_kernel, g = x.is_cuda, False, None
        ctx.dtypes = A.dtype, B.dtype
        with autocast_off(x.device):
            if on_gpu:
                by_kernel = m is not None and norm is not None and taken(x, m, norm)
                # Cast once for both passes: in small steps the host launches kernels too slowly.
                A, B = cast(A, x.dtype), B if by_kernel else cast(B, x.dtype)
            h = matmul(x if x_adapter is None else x_adapter, cast(A, x.dtype).T, alpha=scaling)
            if on_gpu:
                y = output_on_gpu(x, h, W, B, m, norm, bias, by_kernel=by_kernel)
            else:
                g = None if m is None or norm is None else over_norm(m, norm)
                y = output_on_cpu(x, h, W, B, g, bias)
        if len(shape) != 2:
            # Not a view for autograd, so that the output may be changed in place.
            y = unsafe_view(y, (*shape[:-1], W.shape[0]))
        ctx.scaling, ctx.shape, ctx.adapter_apart = scaling, shape, x_adapter is not None
        ctx.by_kernel = by_kernel
        ctx.recovery = None
        if needs_dm and m is not None and norm is not None:
            ctx.recovery = OutputRecovery(y, _divisible(g, m, norm, bias, by_kernel=by_kernel))
        ctx.save_for_backward(
            x if needs_dm or (needs_A and x_adapter is None) else None,
            x_adapter if needs_A else None,
            W if needs_x or needs_dm else None,
            A if needs_x or needs_adapter or needs_A else None,
            B if needs_x or needs_adapter or needs_A or needs_B or needs_dm else None,
            h if needs_B or needs_dm else None,
            m,
            norm,
            g,
            bias,
            y if ctx.recovery is not None and ctx.recovery.saves else None,
        )
        return y

    @staticmethod
    @once_differentiable
    def backward(  # pyright: ignore[reportIncompatibleMethodOverride]
        ctx: Any, dY: Tensor
    ) -> tuple[Tensor | None, ...]:
        hold_pending_outputs()
        with autocast_off(dY.device):  # a backward pass may run under autocast even if the forward did not
            body = _gradients_on_gpu if dY.is_cuda else _gradients_on_cpu
            dx, dx_adapter, dA, dB, dm, db = body(ctx, as_rows(dY), *ctx.saved_tensors)
            dn = None
            if ctx.needs_input_grad[6]:
                m, norm = ctx.saved_tensors[6:8]
                dn = -over_norm(m * dm, norm)
        return (
            None if dx is None else dx.view(ctx.shape),
            None if dx_adapter is None else dx_adapter.view(ctx.shape),
            None,
            dA,
            dB,
            dm if ctx.needs_input_grad[5] else None,
            dn,
            None,
            db,
        )


Gradients = tuple[Tensor | None, Tensor | None, Tensor | None, Tensor | None, Tensor | None, Tensor | None]
"""dx, dx of the adapter's input, dA, dB, dm and db; None for those not needed."""


def _gradients_on_cpu(
    ctx: Any,
    dY: Tensor,
    x: Any,
    x_adapter: Any,
    W: Any,
    A: Any,
    B: Any,
    h: Any,
    m: Any,
    norm: Any,
    g: Any,
    bias: Any,
    saved: Tensor | None,
) -> Gradients:
    """The module's docstring has the equations; g is None for LoRA."""
    needs_x, needs_adapter, _, needs_A, needs_B, _, _, _, needs_bias = ctx.needs_input_grad
    dx: Any = None
    dx_adapter = dA = dB = dm = db = None
    if ctx.recovery is not None:
        y = ctx.recovery.take(saved)
        y = None if y is None else as_rows(y)
        dZ, dm = magnitude_gradients(dY, y, lambda: product_on_cpu(x, h, W, B), g, m, norm, bias)
        del y  # often the last reference
    else:
        dZ = dY if g is None else scale_columns(dY, g, out=_new_like(dY))
    T: Any = None
    if needs_x or needs_adapter or needs_A:
        T = matmul(dZ, cast(B, dY.dtype), alpha=ctx.scaling)
    if needs_x:
        dx = matmul(dZ, cast(W, dY.dtype))
    del dZ  # as large as the output: frees its memory for what follows
    if needs_B:
        dB = up_gradient(dY, h, ctx.dtypes[1])
        if g is not None:
            dB.mul_(g[:, None])
    if needs_x and not ctx.adapter_apart:
        matmul(T, cast(A, dY.dtype), onto=dx)
    if needs_adapter:
        dx_adapter = matmul(T, cast(A, dY.dtype))
    if needs_A:
        dA = down_gradient(T, x_adapter if ctx.adapter_apart else x, ctx.dtypes[0])
    if needs_bias:
        db = column_sums(dY, bias.dtype)
    return dx, dx_adapter, dA, dB, dm, db


def _gradients_on_gpu(
    ctx: Any,
    dY: Tensor,
    x: Any,
    x_adapter: Any,
    W: Any,
    A: Any,
    B: Any,
    h: Any,
    m: Any,
    norm: Any,
    _g: None,
    bias: Any,
    saved: Tensor | None,
) -> Gradients:
    """The module's docstring has the equations; m is None for LoRA."""
    needs_x, needs_adapter, _, needs_A, needs_B, _, _, _, needs_bias = ctx.needs_input_grad
    dx = dx_adapter = dA = dB = dm = db = None
    if ctx.recovery is not None:
        y = ctx.recovery.take(saved)
        y = None if y is None else as_rows(y)
        dZ, dm = _magnitude_gradients_on_gpu(dY, y, x, h, W, B, m, norm, bias, by_kernel=ctx.by_kernel)
        del y  # often the last reference
    else:
        dZ = dY if m is None else scale_columns(dY, over_norm(m, norm), out=_new_like(dY))
    T: Any = None
    if needs_x or needs_adapter or needs_A:
        T = matmul(dZ, cast(B, dY.dtype), alpha=ctx.scaling)
    if needs_x and ctx.adapter_apart:
        dx = matmul(dZ, cast(W, dY.dtype))
    elif needs_x:
        # On a GPU, reading the addend overlaps with multiplying, so the large product comes second.
        dx = matmul(dZ, cast(W, dY.dtype), onto=matmul(T, cast(A, dY.dtype)))
    if needs_B:
        dB = up_gradient(dZ, h, ctx.dtypes[1])
    del dZ  # as large as the output: frees its memory for what follows
    if needs_adapter:
        dx_adapter = matmul(T, cast(A, dY.dtype))
    if needs_A:
        dA = down_gradient(T, x_adapter if ctx.adapter_apart else x, ctx.dtypes[0])
    if needs_bias:
        db = column_sums(dY, bias.dtype)
    return dx, dx_adapter, dA, dB, dm, db


def _magnitude_gradients_on_gpu(
    dY: Tensor,
    y: Tensor | None,
    x: Tensor,
    h: Tensor,
    W: Tensor,
    B: Tensor,
    m: Tensor,
    norm: Tensor,
    bias: Tensor | None,
    *,
    by_kernel: bool,
) -> tuple[Tensor, Tensor]:
    """The gradients dZ and dm."""

    def recompute() -> Tensor:
        return product_on_gpu(x, h, W, B)

    if not by_kernel:
        return magnitude_gradients(dY, y, recompute, over_norm(m, norm), m, norm, bias)
    from doratune.engine.triton.magnitude_backward import Source

    def source() -> Source:
        return Source(x.contiguous(), W, h.contiguous(), B.contiguous())

    return magnitude_gradients_by_kernel(dY, y, recompute, m, norm, bias, source)


def _divisible(
    g: Tensor | None, m: Tensor, norm: Tensor, bias: Tensor | None, *, by_kernel: bool
) -> Callable[[], bool]:
    """Whether z can be recovered from y; always with the kernels, which recompute the columns that cannot.

    It nearly always can, so it counts as such where there is no content to look at.
    """
    if by_kernel or isinstance(norm, FakeTensor):
        return lambda: True
    return divisibility(over_norm(m, norm) if g is None else g, norm, with_bias=bias is not None)


def _new_like(tensor: Tensor) -> Tensor:
    """Uninitialised contiguous memory of a tensor's shape and dtype."""
    return torch.empty_like(tensor, memory_format=torch.contiguous_format)
