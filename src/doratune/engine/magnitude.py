"""DoRA's scaling by the magnitude, and its gradients; also an operation for base layers without a matrix.

    y = g ⊙ z + b        g = m / n        dz = g ⊙ dY        dm = Σ(dY ⊙ z) / n        db = Σ dY

where n is constant, and z is the base layer's output (without its bias) plus s times the adapter's. z is not
kept: see ``output_recovery.py``.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from doratune.engine.channelwise import column_sums, scale_columns, scaled_and_dots
from doratune.engine.output_recovery import (
    OutputRecovery,
    divisibility,
    hold_pending_outputs,
    needed_scale,
)
from doratune.engine.triton.select import taken
from doratune.engine.weight_norm import over_norm

if TYPE_CHECKING:
    from doratune.engine.triton.magnitude_backward import Source


def magnitude_gradients(
    dY: Tensor,
    y: Tensor | None,
    recompute: Callable[[], Tensor],
    g: Tensor,
    m: Tensor,
    norm: Tensor,
    bias: Tensor | None,
) -> tuple[Tensor, Tensor]:
    """The gradients of z and m in PyTorch's operations; where y is given, with z / n = (y - b) / m.

    Args:
        dY: (N, d) or (N, d, L), floating.
        y: Of dY's shape and dtype; None if z cannot be recovered from it.
        recompute: Returns z, of dY's shape and dtype; called only if y is None.
        g: m / norm, (d,).
        m: Magnitude, (d,).
        norm: (d,); where it is 0, so are g and the magnitude's gradient.
        bias: (d,) or None.

    Returns:
        dz in dY's shape and dtype, and dm, (d,), in float32 (float64 where the norm is).
    """
    if y is None:
        dz, dots = scaled_and_dots(dY, recompute(), g)
        return dz, over_norm(dots, norm)
    dz, dots = scaled_and_dots(dY, y, g, bias)
    return dz, torch.where(norm > 0, dots / m, 0)


def magnitude_gradients_by_kernel(
    dY: Tensor,
    y: Tensor | None,
    recompute: Callable[[], Tensor],
    m: Tensor,
    norm: Tensor,
    bias: Tensor | None,
    source: Callable[[], Source] | None = None,
) -> tuple[Tensor, Tensor]:
    """``magnitude_gradients`` on a GPU, for dY (N, d) and a float32 norm, by a kernel that computes g itself.

    ``source`` returns the factors of z. With it, y may be given for any g: the kernel recomputes the columns
    of z whose g is too small to divide by.
    """
    from doratune.engine.triton.magnitude_backward import gradients

    if y is None:
        return gradients(dY.contiguous(), recompute().contiguous(), m, norm)
    needed = needed_scale(with_bias=bias is not None)
    made_of = None if source is None else source()
    return gradients(dY.contiguous(), y.contiguous(), m, norm, bias, made_of, needed)


def scale_by_magnitude(
    z: Tensor,
    m: Tensor,
    norm: Tensor,
    bias: Tensor | None = None,
    *,
    channel_dim: int = -1,
    g: Tensor | None = None,
    remake: Callable[..., Tensor],
    kept: tuple[Tensor, ...],
) -> Tensor:
    """``(m / norm) ⊙ z + bias`` along one dimension, the bias alone where the norm is 0.

    Args:
        z: Any shape, floating.
        m: Magnitude, (d,), d being z's size in ``channel_dim``; any floating dtype.
        norm: (d,), float32 or float64, detached.
        bias: (d,), any floating dtype, or None.
        channel_dim: 1 or -1.
        g: ``m / norm`` if the caller has it, for calls without gradients.
        remake: Recomputes z, without gradients, from ``kept``.
        kept: The layer's inputs, the arguments of ``remake``; the adapter saves them anyway.

    Returns:
        Of z's shape and dtype.

    Raises:
        RuntimeError: From PyTorch, if the shapes do not fit.
    """
    if torch.compiler.is_compiling():
        shape = [1] * z.ndim
        shape[channel_dim] = -1
        y = z * over_norm(m, norm).view(shape)
        return (y if bias is None else y + bias.view(shape)).to(z.dtype)
    if not torch.is_grad_enabled():
        return _scaled(_dense(z, channel_dim), over_norm(m, norm) if g is None else g, bias, channel_dim)
    y: Any = _Scale.apply(z, m, norm, bias, channel_dim, remake, *kept)
    return y


class _Scale(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        z: Tensor,
        m: Tensor,
        norm: Tensor,
        bias: Tensor | None,
        channel_dim: int,
        remake: Callable[..., Tensor],
        *kept: Tensor,
    ) -> Tensor:
        g = over_norm(m, norm)
        y = _scaled(_dense(z, channel_dim), g, bias, channel_dim)
        needs_m = ctx.needs_input_grad[1]
        divisible = divisibility(g, norm, with_bias=bias is not None)
        ctx.recovery = OutputRecovery(y, divisible) if needs_m else None
        ctx.channel_dim, ctx.remake = channel_dim, remake
        # Saving m, a parameter, takes no memory; saving g would.
        saved = y if ctx.recovery is not None and ctx.recovery.saves else None
        ctx.save_for_backward(m, norm, bias, saved, *(kept if needs_m else ()))
        return y

    @staticmethod
    @once_differentiable
    def backward(  # pyright: ignore[reportIncompatibleMethodOverride]
        ctx: Any, dY: Tensor
    ) -> tuple[Tensor | None, ...]:
        hold_pending_outputs()
        m, norm, bias, saved, *kept = ctx.saved_tensors
        dY = _dense(dY, ctx.channel_dim)
        columns = _columns(dY, ctx.channel_dim)
        dm = db = None
        if ctx.needs_input_grad[1]:
            y = ctx.recovery.take(saved)

            def recompute() -> Tensor:
                with torch.no_grad():
                    return _columns(ctx.remake(*kept), ctx.channel_dim, like=dY)

            y = None if y is None else _columns(y, ctx.channel_dim, like=dY)
            if columns.ndim == 2 and taken(columns, m, norm):
                dZ, dm = magnitude_gradients_by_kernel(columns, y, recompute, m, norm, bias)
            else:
                dZ, dm = magnitude_gradients(columns, y, recompute, over_norm(m, norm), m, norm, bias)
        else:
            dZ = scale_columns(columns, over_norm(m, norm), torch.empty_like(columns))
        if bias is not None and ctx.needs_input_grad[3]:
            db = column_sums(columns, bias.dtype)
        dz = _from_columns(dZ, dY, ctx.channel_dim)
        return dz, dm, None, db, None, None, *(None for _ in kept)


def _scaled(z: Tensor, g: Tensor, bias: Tensor | None, channel_dim: int) -> Tensor:
    """``g ⊙ z + bias`` for a dense z."""
    y = torch.empty_like(z)  # in z's layout, so that a consumer can view it as it would view z
    scale_columns(_columns(z, channel_dim), g, _columns(y, channel_dim), bias)
    return y


def _channels_last(z: Tensor, channel_dim: int) -> bool:
    """Whether the channels are the innermost dimension in memory."""
    if channel_dim in (-1, z.ndim - 1):
        return True
    return z.movedim(channel_dim, -1).is_contiguous() and not z.is_contiguous()


def _dense(z: Tensor, channel_dim: int) -> Tensor:
    """Contiguous, as it is or with the channels last: z itself where it is so already, otherwise a copy."""
    return z if z.movedim(channel_dim, -1).is_contiguous() else z.contiguous()


def _columns(z: Tensor, channel_dim: int, like: Tensor | None = None) -> Tensor:
    """(N, d) or (N, d, L), whichever suits the memory layout of ``like`` (default: z); a view if possible."""
    if _channels_last(z if like is None else like, channel_dim):
        return z.movedim(channel_dim, -1).reshape(-1, z.shape[channel_dim])
    return z.flatten(2)


def _from_columns(columns: Tensor, like: Tensor, channel_dim: int) -> Tensor:
    """``_columns`` undone: in the shape and memory layout of ``like``."""
    if _channels_last(like, channel_dim):
        return columns.view(like.movedim(channel_dim, -1).shape).movedim(-1, channel_dim)
    return columns.view(like.shape)
