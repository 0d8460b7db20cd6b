"""DoRA's scaling as an operation of its own, for layers whose base is not a plain matrix product.

    y = g ⊙ z + b        g = m / n        dz = g ⊙ dY        dm = Σ(dY ⊙ z) / n        db = Σ dY

where z is the output of the base layer (without its bias) plus s times the adapter's. As in ``linear.py``, z
is not kept: it is (y - b) / g where somebody keeps y, and is computed again where nobody does.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from doratune.engine.channelwise import column_sums, scale_columns
from doratune.engine.output_recovery import ReadLater, WeakOutput, hold_pending_outputs, under_checkpoint
from doratune.engine.scaling import scaling_gradients
from doratune.engine.weight_norm import over_norm


def scale_by_magnitude(
    z: Tensor,
    m: Tensor,
    norm: Tensor,
    bias: Tensor | None = None,
    *,
    channel_dim: int = -1,
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
        remake: Gives z again, without gradients, from ``kept``.
        kept: What ``remake`` needs beside parameters: the layer's inputs, which the adapter keeps anyway.

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
        z = _dense(z, channel_dim)
        y = torch.empty_like(z)  # in z's layout: a consumer may view it as it would view z
        scale_columns(_columns(z, channel_dim), g, _columns(y, channel_dim), bias)
        needs_m = ctx.needs_input_grad[1]
        keeps = needs_m and under_checkpoint()
        ctx.output = WeakOutput(y) if needs_m and not keeps else None
        ctx.smallest = ReadLater(g.abs().amin()) if needs_m and g.is_cuda else None
        ctx.channel_dim, ctx.remake = channel_dim, remake
        # m, a parameter, is kept anyway; g is not.
        ctx.save_for_backward(m, norm, bias, y if keeps else None, *(kept if needs_m else ()))
        return y

    @staticmethod
    @once_differentiable
    def backward(  # pyright: ignore[reportIncompatibleMethodOverride]
        ctx: Any, dY: Tensor
    ) -> tuple[Tensor | None, ...]:
        hold_pending_outputs()
        m, norm, bias, y, *kept = ctx.saved_tensors
        dY = _dense(dY, ctx.channel_dim)
        columns = _columns(dY, ctx.channel_dim)
        dm = db = None
        if ctx.needs_input_grad[1]:
            y = y if y is not None else ctx.output.take()

            def remake() -> Tensor:
                with torch.no_grad():
                    return _columns(ctx.remake(*kept), ctx.channel_dim, like=dY)

            y = None if y is None else _columns(y, ctx.channel_dim, like=dY)
            dZ, dm = scaling_gradients(columns, y, m, norm, bias, remake, smallest=ctx.smallest)
        else:
            dZ = scale_columns(columns, over_norm(m, norm), torch.empty_like(columns))
        if bias is not None and ctx.needs_input_grad[3]:
            db = column_sums(columns, bias.dtype)
        dz = _from_columns(dZ, dY, ctx.channel_dim)
        return dz, dm, None, db, None, None, *(None for _ in kept)


def _channels_last(z: Tensor, channel_dim: int) -> bool:
    """Whether the channels are the dimension whose elements lie side by side in memory."""
    if channel_dim in (-1, z.ndim - 1):
        return True
    return z.movedim(channel_dim, -1).is_contiguous() and not z.is_contiguous()


def _dense(z: Tensor, channel_dim: int) -> Tensor:
    """As it is, or a copy if it is contiguous in neither order of its dimensions."""
    return z if z.movedim(channel_dim, -1).is_contiguous() else z.contiguous()


def _columns(z: Tensor, channel_dim: int, like: Tensor | None = None) -> Tensor:
    """As (N, d) or (N, d, L), as ``like`` (or else z itself) lies in memory; a view if z lies so."""
    if _channels_last(z if like is None else like, channel_dim):
        return z.movedim(channel_dim, -1).reshape(-1, z.shape[channel_dim])
    return z.flatten(2)


def _from_columns(columns: Tensor, like: Tensor, channel_dim: int) -> Tensor:
    """``_columns`` undone: in the shape and order of ``like``."""
    if _channels_last(like, channel_dim):
        return columns.view(like.movedim(channel_dim, -1).shape).movedim(-1, channel_dim)
    return columns.view(like.shape)
