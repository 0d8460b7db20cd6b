"""Gradients of A and B, each computed the way that is fastest on the device."""

from __future__ import annotations

import torch
from torch import Tensor

from doratune.engine.matmul import matmul


def down_gradient(T: Tensor, x: Tensor, dtype: torch.dtype) -> Tensor:
    """``Tᵀ x``.

    Args:
        T: (N, r), floating.
        x: (N, d_in), T's dtype.
        dtype: The result's dtype.

    Returns:
        (r, d_in), contiguous.
    """
    if T.is_cuda:
        return _unrounded(T.T, x, dtype)
    # oneDNN can take twice as long to read a thin matrix by columns; the copy is small.
    return matmul(T.T.contiguous(), x).to(dtype)


def up_gradient(dZ: Tensor, h: Tensor, dtype: torch.dtype) -> Tensor:
    """``dZᵀ h``.

    Args:
        dZ: (N, d_out), floating.
        h: (N, r), dZ's dtype.
        dtype: The result's dtype.

    Returns:
        (d_out, r), contiguous.
    """
    if dZ.is_cuda:
        return _unrounded(dZ.T, h, dtype)
    # ``to`` keeps the strides where the dtype stays the same.
    return matmul(h.T.contiguous(), dZ).T.to(dtype, memory_format=torch.contiguous_format).contiguous()


def _unrounded(a: Tensor, b: Tensor, dtype: torch.dtype) -> Tensor:
    """``a b`` on a GPU; a float32 result is not first rounded to the dtype of a and b."""
    if dtype == torch.float32 and a.dtype in (torch.bfloat16, torch.float16):
        return torch.mm(a, b, out_dtype=dtype)
    return (a @ b).to(dtype)
