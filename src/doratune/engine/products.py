"""Matrix products by the library that is fastest at them.

PyTorch leaves float32 products on a CPU to MKL. On AMD's processors with AVX-512, oneDNN, to which PyTorch
leaves products of bfloat16 and float16, is faster at float32 too: more than twice as fast on a Zen 5. It is
reached by the operation that PyTorch's own compiler puts in the place of a linear layer.

With AMX, oneDNN leaves one of two threads idle in bfloat16 products of some hundred rows, between once and
twice as many as columns: those of a model of SmolLM2's width with a thousand tokens. In parts of fewer rows
than columns, one after the other, such a product takes 0.7 of the time.

Where PyTorch has no fast products of bfloat16 or float16 they are made in float32: see ``widened.py``.
"""

from __future__ import annotations

import functools
import math

import torch
from torch import Tensor
from torch.nn import functional

from doratune.engine.widened import is_widened, widened_mm

THREADS = 2
"""For which it is known in which sizes one is idle."""
COLUMNS, TERMS, ROWS = (512, 768), 576, 1152
"""Sizes in which one always is, as far as was measured: columns of a product, from and to, terms of a sum, at
least, and rows, at most. Above, it depends on all of them."""


def mm(a: Tensor, b: Tensor) -> Tensor:
    """``a b``, of any strides. Without gradients: for use inside autograd functions.

    With ``torch.backends.mkldnn.enabled = False`` it is made as PyTorch makes it.

    Args:
        a: (n, k), floating.
        b: (k, p), a's dtype.

    Returns:
        (n, p) in a's dtype.

    Raises:
        RuntimeError: From PyTorch, if the shapes do not fit.
    """
    if left_to_onednn(a):
        return _by_onednn(a, b.T, None)
    if is_widened(a):
        return widened_mm(a, b)
    idles = _idles_in(a.shape[0], a.shape[1], b.shape[1]) and _idles_with(a)
    return _by_parts(a, b) if idles else a @ b


def linear(x: Tensor, W: Tensor, bias: Tensor | None) -> Tensor:
    """``x Wᵀ + bias`` likewise, but never in parts.

    Args:
        x: (n, d_in), floating.
        W: (d_out, d_in), x's dtype.
        bias: (d_out,), x's dtype, or None.

    Returns:
        (n, d_out) in x's dtype.

    Raises:
        RuntimeError: From PyTorch, if the shapes do not fit.
    """
    if is_widened(x):
        y = widened_mm(x, W.T)
        return y if bias is None else y.add_(bias)
    return _by_onednn(x, W, bias) if left_to_onednn(x) else functional.linear(x, W, bias)


def made_otherwise(weight: Tensor) -> bool:
    """Whether some products with a weight are made in another way than PyTorch's."""
    return left_to_onednn(weight) or is_widened(weight) or _idles_with(weight)


def _idles_in(rows: int, terms: int, columns: int) -> bool:
    """Whether a thread is idle in a product of such sizes."""
    known = COLUMNS[0] <= columns <= COLUMNS[1] and TERMS <= terms <= 2.7 * columns
    return known and columns <= rows <= min(ROWS, 1.8 * columns)


def _idles_with(a: Tensor) -> bool:
    """Whether a thread is idle in products of ``a`` in some sizes."""
    fits = a.dtype == torch.bfloat16 and a.device.type == "cpu" and _has_amx()
    return fits and torch.get_num_threads() == THREADS and bool(torch.backends.mkldnn.enabled)


def _by_parts(a: Tensor, b: Tensor) -> Tensor:
    (rows, _), columns = a.shape, b.shape[1]
    # oneDNN is at its best with multiples of 64 rows, and at few less than there are columns with no others.
    count = 2 if rows % 128 == 0 else math.ceil(rows / (0.8 * columns))
    size = math.ceil(rows / count / 64) * 64
    product = a.new_empty(rows, columns)
    for start in range(0, rows, size):
        part = slice(start, start + size)
        torch.mm(a[part], b, out=product[part])
    return product


def _by_onednn(x: Tensor, W: Tensor, bias: Tensor | None) -> Tensor:
    return torch.ops.mkldnn._linear_pointwise(x, W, bias, "none", [], "")


def left_to_onednn(a: Tensor) -> bool:
    """Whether a product of ``a`` goes to oneDNN where PyTorch would not give it there."""
    fits = a.dtype == torch.float32 and a.device.type == "cpu" and a.shape[1] > 0
    return fits and _is_faster_here() and bool(torch.backends.mkldnn.enabled)


@functools.cache
def _is_faster_here() -> bool:
    # By kind and not by a trial: the same machine has to choose the same in every run.
    cpu = torch.cpu.get_capabilities()
    known = hasattr(torch.ops.mkldnn, "_linear_pointwise")
    return known and cpu.get("cpu_name", "").startswith("AMD") and cpu.get("avx512_f", False)


@functools.cache
def _has_amx() -> bool:
    return bool(torch.cpu.get_capabilities().get("amx_bf16", False))
