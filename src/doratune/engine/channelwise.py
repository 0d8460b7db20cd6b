"""Scales columns and sums products over rows; on a CPU each takes one pass and one rounding.

Here a bfloat16 tensor meets a float32 ``g``. PyTorch's general CPU kernels are slow for mixed dtypes, and a
float32 copy of an activation makes a round trip to memory. PyTorch's batch norm in evaluation mode accepts
exactly these dtypes and is vectorised: with mean b, variance 1 and weight g, its backward step gives
``dY ⊙ g`` and Σ(dY ⊙ (y - b)) and reads dY and y once. So the CPU uses that kernel. A GPU uses a kernel of
this project, which is twice as fast as PyTorch's for mixed dtypes (``triton/``).

A tensor is (N, d), or (N, d, L) where more dimensions follow the channels, as in an image.
"""

from __future__ import annotations

import torch
from torch import Tensor

from doratune.engine._internals import batch_norm_backward, batch_norm_out
from doratune.engine.buffers import buffered_rows, constant_like
from doratune.engine.triton.select import taken

KERNEL_DTYPES = (torch.bfloat16, torch.float16, torch.float32)
"""Dtypes that the CPU's batch norm accepts together with a float32 g."""

BUFFER_ELEMENTS = 1 << 22
"""Elements of the wide buffer where batch norm is not used: 16 MiB in float32."""


def scale_columns(z: Tensor, g: Tensor, out: Tensor, bias: Tensor | None = None) -> Tensor:
    """``z ⊙ g + bias``, rounded to z's dtype, into ``out``.

    Args:
        z: (N, d) or (N, d, L), any floating dtype.
        g: (d,), float32 or float64.
        out: Of z's shape and dtype; may be z itself.
        bias: (d,), any floating dtype, or None for 0.

    Returns:
        ``out``.
    """
    if z.dtype != g.dtype and _kernel_takes(z, g):
        if not out.is_contiguous():  # the kernel would silently write in another memory order
            packed = torch.empty_like(z, memory_format=torch.contiguous_format)
            return out.copy_(scale_columns(z, g, packed, bias))
        zeros, ones, empty = constant_like(g, 0), constant_like(g, 1), g.new_empty(0)
        batch_norm_out(
            _as_image(z.contiguous()),
            g,
            None if bias is None else bias.to(g.dtype),
            zeros,
            ones,
            False,
            0.0,
            0.0,
            out=(_as_image(out), empty, empty),
        )
        return out
    if z.ndim == 2 and z.is_contiguous() and out.is_contiguous() and taken(z, g):
        from doratune.engine.triton import magnitude_forward

        return magnitude_forward.scale(z, g, None, out, bias)
    torch.mul(z, _across(g, z), out=out)
    return out if bias is None else out.add_(_across(bias.to(g.dtype), z))


def scaled_and_dots(dY: Tensor, y: Tensor, g: Tensor, bias: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """``dY ⊙ g`` and Σ(dY ⊙ (y - bias)) over rows, the sum in g's dtype.

    Args:
        dY: (N, d) or (N, d, L), any floating dtype.
        y: Of dY's shape and dtype.
        g: (d,), float32 or float64.
        bias: (d,), any floating dtype, or None for 0.

    Returns:
        ``dY ⊙ g`` in dY's shape and dtype, contiguous, and the sums, (d,), in g's dtype.
    """
    if _kernel_takes(dY, g):
        mean = constant_like(g, 0) if bias is None else bias.to(g.dtype)
        scaled, sums, _ = batch_norm_backward(
            _as_image(dY.contiguous()),
            _as_image(y.contiguous()),
            g,
            mean,
            constant_like(g, 1),
            None,
            None,
            False,
            0.0,
            [True, True, False],
        )
        return _from_image(scaled, dY), sums
    scaled = torch.empty_like(dY, memory_format=torch.contiguous_format)
    return torch.mul(dY, _across(g, dY), out=scaled), _dots(dY, y, g.dtype, bias)


def column_sums(tensor: Tensor, dtype: torch.dtype) -> Tensor:
    """The sum of each column.

    Args:
        tensor: (N, d) or (N, d, L), any floating dtype.
        dtype: The dtype of the sums.

    Returns:
        (d,) in ``dtype``.
    """
    return tensor.sum(dim=0 if tensor.ndim == 2 else (0, 2), dtype=dtype)


def _kernel_takes(tensor: Tensor, g: Tensor) -> bool:
    """Whether batch norm accepts both; it divides by the number of rows, so never an empty tensor."""
    fits = tensor.device.type == "cpu" and g.dtype == torch.float32 and tensor.dtype in KERNEL_DTYPES
    return fits and tensor.numel() > 0


def _as_image(tensor: Tensor) -> Tensor:
    """(N, d) as an image whose d channels are innermost in memory; (N, d, L) unchanged."""
    if tensor.ndim == 3:
        return tensor
    return tensor.view(1, tensor.shape[0], 1, tensor.shape[1]).permute(0, 3, 1, 2)


def _from_image(image: Tensor, like: Tensor) -> Tensor:
    """``_as_image`` undone."""
    return image if like.ndim == 3 else image.permute(0, 2, 3, 1).view(like.shape)


def _across(g: Tensor, tensor: Tensor) -> Tensor:
    """``g``, shaped to broadcast along the columns of ``tensor``."""
    return g if tensor.ndim == 2 else g[:, None]


def _dots(a: Tensor, b: Tensor, dtype: torch.dtype, bias: Tensor | None) -> Tensor:
    """Σ(a ⊙ (b - bias)) over rows, in ``dtype``: float16 products would overflow under loss scaling."""
    sums = torch.zeros(a.shape[1], dtype=dtype, device=a.device)
    bias = None if bias is None else _across(bias.to(dtype), a)
    for rows, wide in buffered_rows(a, dtype, BUFFER_ELEMENTS):
        wide.copy_(b[rows])
        if bias is not None:
            wide -= bias
        sums += column_sums(wide.mul_(a[rows]), dtype)
    return sums
