"""The scale of y = g ⊙ z + b, and its backward step with n constant: dz = g ⊙ dY, dm = Σ(dY ⊙ z) / n."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from doratune.engine.columns import scaled_and_dots
from doratune.engine.norm import over_norm
from doratune.engine.outputs import ReadLater, can_be_divided
from doratune.engine.triton.select import taken


def scale(m: Tensor, norm: Tensor, *, needs_smallest: bool) -> tuple[Tensor, ReadLater | None]:
    """``g = m / norm``, 0 where the norm is 0, and what ``scaling_gradients`` will ask about it.

    Args:
        m: Magnitude, (d,), any floating dtype.
        norm: (d,), float32 or float64.
        needs_smallest: Whether it will.

    Returns:
        (d,) in the norm's dtype at least; on a GPU, if needed, the smallest |g|.
    """
    if taken(m, norm):
        from doratune.engine.triton.output import gain

        g, smallest = gain(m, norm)
    else:
        g = over_norm(m, norm)
        smallest = g.abs().amin() if needs_smallest and g.is_cuda else None
    return g, ReadLater(smallest) if needs_smallest and smallest is not None else None


def scaling_gradients(
    dY: Tensor,
    y: Tensor | None,
    g: Tensor,
    m: Tensor,
    norm: Tensor,
    bias: Tensor | None,
    smallest: ReadLater | None,
    remake: Callable[[], Tensor],
) -> tuple[Tensor, Tensor]:
    """The gradients of z and m, with z from y where that serves: z / n = (y - b) / m.

    Args:
        dY: (N, d) or (N, d, L), floating.
        y: Of dY's shape and dtype, or None if it is gone.
        g: m / norm, (d,), 0 where the norm is 0.
        m: Magnitude, (d,).
        norm: (d,); where it is 0 the magnitude gets no gradient.
        bias: (d,) or None.
        smallest: What ``scale`` gave.
        remake: Computes z, of dY's shape and dtype.

    Returns:
        dz in dY's shape and dtype, and dm, (d,), in g's dtype.
    """
    if y is not None and can_be_divided(g, norm, smallest, beside_bias=bias is not None):
        dz, dots = scaled_and_dots(dY, y, g, bias)
        return dz, torch.where(norm > 0, dots / m, 0)
    dz, dots = scaled_and_dots(dY, remake(), g)
    return dz, over_norm(dots, norm)
