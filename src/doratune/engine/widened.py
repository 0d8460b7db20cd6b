"""Products of bfloat16 and float16 matrices in float32, on CPUs for which PyTorch has no fast ones.

Without AVX-512 oneDNN takes neither type (and float16 only on the newest CPUs). PyTorch then multiplies by
loops of its own, which take 8 to 500 times as long as the same product of float32 matrices: most where the
second one is not transposed, as in the backward pass of every layer.
"""

from __future__ import annotations

import functools

import torch
from torch import Tensor

from doratune.engine.autocast import autocast_off

BLOCK_ELEMENTS = 1 << 21
"""Most elements of b, and of the product, in float32 at a time: 8 MiB each."""
ROWS_ELEMENTS = 1 << 23
"""Most elements of a in float32 at a time, for each of which all of b is widened anew: 32 MiB."""
SUPPORT = {torch.bfloat16: "_is_mkldnn_bf16_supported", torch.float16: "_is_mkldnn_fp16_supported"}
"""By dtype, the operation that says whether oneDNN takes it here."""


def is_widened(a: Tensor) -> bool:
    """Whether products of ``a`` are made in float32; a compiler's are its own."""
    fits = a.dtype in SUPPORT and a.device.type == "cpu" and not torch.compiler.is_compiling()
    return fits and _lacks_products(a.dtype)


def widened_mm(a: Tensor, b: Tensor, scaling: float = 1.0, *, onto: Tensor | None = None) -> Tensor:
    """``scaling · a b``, added to what ``onto`` holds if it is given, summed in float32 and rounded once.

    Args:
        a: (n, k), bfloat16 or float16, of any strides like the others.
        b: (k, p), a's dtype.
        scaling: Of the product.
        onto: (n, p), a's dtype; overwritten by the result.

    Returns:
        (n, p) in a's dtype: ``onto`` if it is given.

    Raises:
        RuntimeError: From PyTorch, if the shapes do not fit.
    """
    (n, k), p = a.shape, b.shape[1]
    total = a.new_empty(n, p) if onto is None else onto
    height = max(1, ROWS_ELEMENTS // max(1, k))
    with autocast_off(a.device):
        for a_rows, total_rows in zip(a.split(height), total.split(height), strict=True):
            wide = a_rows.float()
            width = max(1, BLOCK_ELEMENTS // max(1, k, len(wide)))
            for b_columns, part in zip(b.split(width, dim=1), total_rows.split(width, dim=1), strict=True):
                # With beta = 0 the first argument is not read.
                before = wide.new_empty(()) if onto is None else part.float()
                beta = 0 if onto is None else 1
                part.copy_(torch.addmm(before, wide, b_columns.float(), beta=beta, alpha=scaling))
    return total


@functools.cache
def _lacks_products(dtype: torch.dtype) -> bool:
    if torch.cpu.get_capabilities().get("architecture") != "x86_64":  # not known of others
        return False
    return not torch.backends.mkldnn.is_available() or not getattr(torch.ops.mkldnn, SUPPORT[dtype])()
