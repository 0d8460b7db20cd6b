"""The backward step of y = g ⊙ z + b with g = m / n, n constant: dz = g ⊙ dY, dm = Σ(dY ⊙ z) / n."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from doratune.engine.channelwise import scaled_and_dots
from doratune.engine.output_recovery import ReadLater, can_be_divided, needed_scale
from doratune.engine.triton.select import taken
from doratune.engine.weight_norm import over_norm


def scaling_gradients(
    dY: Tensor,
    y: Tensor | None,
    m: Tensor,
    norm: Tensor,
    bias: Tensor | None,
    remake: Callable[[], Tensor],
    *,
    source: tuple[Tensor, Tensor, Tensor, Tensor] | None = None,
    smallest: ReadLater | None = None,
    g: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """The gradients of z and m, with z from y where that serves: z / n = (y - b) / m.

    Args:
        dY: (N, d) or (N, d, L), floating.
        y: Of dY's shape and dtype, or None if it is gone.
        m: Magnitude, (d,).
        norm: (d,); where it is 0, so is g, and the magnitude gets no gradient.
        bias: (d,) or None.
        remake: Computes z, of dY's shape and dtype.
        source: x (N, d_in), W (d, d_in), h (N, r) and B (d, r), if z = x Wᵀ + h Bᵀ: on a GPU single columns
            of z can then be computed again, and nothing need be known before.
        smallest: On a GPU, the smallest |g|, if it was asked for in the forward pass.
        g: m / norm, (d,), if somebody has it.

    Returns:
        dz in dY's shape and dtype, and dm, (d,), in float32 (float64 where the norm is).
    """
    if dY.ndim == 2 and taken(dY, m, norm):
        from doratune.engine.triton.magnitude_backward import Source, gradients

        needed = needed_scale(beside_bias=bias is not None)
        if y is not None and source is not None:
            x, W, h, B = source
            made_of = Source(x.contiguous(), W, h.contiguous(), B.contiguous())
            return gradients(dY.contiguous(), y.contiguous(), m, norm, bias, made_of, needed)
        if y is not None and smallest is not None and smallest.get() >= needed:
            return gradients(dY.contiguous(), y.contiguous(), m, norm, bias, smallest=needed)
        return gradients(dY.contiguous(), remake().contiguous(), m, norm)
    g = over_norm(m, norm) if g is None else g
    if y is not None and can_be_divided(g, norm, smallest, beside_bias=bias is not None):
        dz, dots = scaled_and_dots(dY, y, g, bias)
        return dz, torch.where(norm > 0, dots / m, 0)
    dz, dots = scaled_and_dots(dY, remake(), g)
    return dz, over_norm(dots, norm)
