"""Matrix products, each computed the way that is fastest on this processor.

The way is decided once per dtype, from ``CpuTraits``:

- float32 on AMD's processors with AVX-512: by oneDNN, which on a Zen 5 is more than twice as fast as MKL,
  PyTorch's choice. The operation that PyTorch's compiler uses for linear layers calls it.
- bfloat16 with AMX: by oneDNN, as PyTorch does, but in blocks of rows where oneDNN would leave one of two
  threads idle. That happens with 512 to 768 columns, at least 576 terms, and 1 to 1.8 times as many rows as
  columns: SmolLM2's width and a thousand tokens. In blocks such a product takes 0.7 times as long.
- bfloat16 and float16 where oneDNN lacks them or only emulates them: widened to float32 and rounded
  once at the end. PyTorch's own loops take 8 to 500 times as long as float32, oneDNN's emulation 6 times.
- Everything else, and everything on a GPU or inside a compiled graph: as PyTorch does it.

With ``torch.backends.mkldnn.enabled = False`` the first two cases are left to PyTorch too.
"""

from __future__ import annotations

import functools
import math
from enum import Enum
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn.functional import linear as pytorch_linear

from doratune.engine._internals import onednn_linear
from doratune.engine.autocast import autocast_off
from doratune.engine.cpu_traits import CpuTraits, cpu_traits

THREADS = 2
"""The number of threads for which these shapes were measured."""
COLUMNS, TERMS, ROWS = (512, 768), 576, 1152
"""Shapes where oneDNN leaves a thread idle: 512 to 768 columns, at least 576 terms and at most 1152 rows."""
BLOCK_ELEMENTS = 1 << 21
"""The most elements of b, and of the product, held in float32 at a time: 8 MiB each."""
ROWS_ELEMENTS = 1 << 23
"""The most elements of a held in float32 at a time: 32 MiB. Each such block widens all of b again."""


class Way(Enum):
    """How a product on a CPU is computed."""

    PYTORCH = "PyTorch's choice"
    ONEDNN = "oneDNN"
    PARTS = "oneDNN, in blocks of rows"
    WIDENED = "widened to float32"


@functools.cache
def way_of(dtype: torch.dtype, cpu: CpuTraits) -> Way:
    """How products of a dtype are computed on a processor."""
    if dtype == torch.float32 and cpu.onednn and cpu.avx512 and cpu.vendor == "AMD":
        return Way.ONEDNN
    if dtype in (torch.bfloat16, torch.float16) and cpu.x86 and not cpu.is_fast_at(dtype):
        return Way.WIDENED
    return Way.PARTS if dtype == torch.bfloat16 and cpu.amx_bf16 else Way.PYTORCH


def matmul(a: Tensor, b: Tensor, *, alpha: float = 1.0, onto: Tensor | None = None) -> Tensor:
    """``alpha · a b``, added to what ``onto`` holds if it is given.

    Computes no gradients and expects autocast to be off; for use inside autograd functions.

    Args:
        a: (n, k), floating; all arguments may have any strides.
        b: (k, p), a's dtype.
        alpha: Applied in the accumulator where the library can, which saves a rounding.
        onto: (n, p), a's dtype; overwritten by the result.

    Returns:
        (n, p) in a's dtype: ``onto`` if it is given.

    Raises:
        RuntimeError: From PyTorch, if the shapes do not fit.
    """
    way = Way.PYTORCH if a.is_cuda else _way(a)
    if way is Way.WIDENED:
        return _widened(a, b, alpha, onto)
    if onto is not None:
        return onto.addmm_(a, b, alpha=alpha)
    if way is Way.ONEDNN and _onednn_takes(a):
        product = _by_onednn(a, b.T, None)
        return product if alpha == 1.0 else product.mul_(alpha)
    if alpha != 1.0:
        # With beta = 0 the first argument is not read.
        return torch.addmm(_unread(a), a, b, beta=0, alpha=alpha)
    if way is Way.PARTS and _leaves_thread_idle(a.shape[0], a.shape[1], b.shape[1]) and _parts_apply():
        return _in_parts(a, b)
    return torch.mm(a, b)


def linear(x: Tensor, W: Tensor, bias: Tensor | None) -> Tensor:
    """``x Wᵀ + bias``, computed as by ``matmul`` but never in blocks of rows.

    Args:
        x: (n, d_in), floating.
        W: (d_out, d_in), x's dtype.
        bias: (d_out,), x's dtype, or None.

    Returns:
        (n, d_out) in x's dtype.

    Raises:
        RuntimeError: From PyTorch, if the shapes do not fit.
    """
    way = _way(x)
    if way is Way.WIDENED:
        y = _widened(x, W.T, 1.0, None)
        return y if bias is None else y.add_(bias)
    if way is Way.ONEDNN and _onednn_takes(x):
        return _by_onednn(x, W, bias)
    return pytorch_linear(x, W, bias)


def cast(tensor: Tensor, dtype: torch.dtype) -> Tensor:
    """``tensor`` in ``dtype``; even a ``to`` that changes nothing costs as much as a small product."""
    return tensor if tensor.dtype == dtype else tensor.to(dtype)


def linear_in_float32(x: Tensor, W: Tensor, bias: Tensor | None) -> Tensor:
    """``x Wᵀ + bias`` in float32 for bfloat16 or float16 inputs, without a float32 copy of W.

    Computes no gradients and expects autocast to be off.

    Args:
        x: (n, d_in), floating.
        W: (d_out, d_in), floating.
        bias: (d_out,), floating, or None.

    Returns:
        (n, d_out), float32; nothing is rounded to a narrower dtype.

    Raises:
        RuntimeError: From PyTorch, if the shapes do not fit.
    """
    if x.is_cuda and x.dtype == W.dtype != torch.float32:
        y = torch.mm(x, W.T, out_dtype=torch.float32)
    else:
        y = _widened(x, W.T, 1.0, None, dtype=torch.float32)
    return y if bias is None else y.add_(bias)


def frozen_linear(x: Tensor, W: Tensor, bias: Tensor | None) -> Tensor:
    """``x Wᵀ + bias`` with a gradient to x and the bias, for a weight that is not trained.

    Args:
        x: (..., d_in), floating, already in autocast's dtype where autocast is on.
        W: Frozen, (d_out, d_in), any floating dtype under autocast, else x's.
        bias: (d_out,), likewise, or None.

    Returns:
        (..., d_out) in x's dtype.

    Raises:
        RuntimeError: From PyTorch, if the shapes do not fit.
    """
    if not differs_from_pytorch(x):
        return pytorch_linear(x, W, bias)
    y: Any = _FrozenProduct.apply(x.reshape(-1, x.shape[-1]), W)
    y = y.view(*x.shape[:-1], W.shape[0])
    return y if bias is None else y + bias.to(y.dtype)


def is_widened(tensor: Tensor) -> bool:
    """Whether products of ``tensor`` are computed in float32."""
    return _way(tensor) is Way.WIDENED


def differs_from_pytorch(tensor: Tensor) -> bool:
    """Whether some products of ``tensor`` are not computed PyTorch's way."""
    way = _way(tensor)
    if way is Way.ONEDNN:
        return bool(torch.backends.mkldnn.enabled)
    return way is Way.WIDENED or (way is Way.PARTS and _parts_apply())


def explain_way(dtype: torch.dtype) -> str:
    """How products of a dtype are computed on this processor, and why."""
    cpu, name = cpu_traits(), str(dtype).removeprefix("torch.")
    way = way_of(dtype, cpu)
    if way is Way.WIDENED:
        why = "only emulates" if dtype in cpu.onednn_takes else "lacks"
        return f"widened to float32, since oneDNN {why} {name} on this processor"
    if not torch.backends.mkldnn.enabled:
        return "PyTorch's own loops or BLAS, since torch.backends.mkldnn.enabled is False"
    if way is Way.ONEDNN:
        return "oneDNN, faster than MKL on AMD's processors with AVX-512"
    if way is Way.PARTS:
        parts = (
            "in blocks of rows"
            if _parts_apply()
            else f"whole; in blocks of rows only with {THREADS} threads,"
        )
        return f"oneDNN with AMX, {parts} where it would leave a thread idle"
    if dtype in cpu.onednn_takes:
        return f"oneDNN, with the processor's {name} instructions"
    library = "MKL" if torch.backends.mkl.is_available() else "its BLAS"
    return f"PyTorch's choice ({library if dtype == torch.float32 else 'not known for this processor'})"


class _FrozenProduct(torch.autograd.Function):
    """x Wᵀ for x (N, d_in) and a constant W (d_out, d_in)."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, W: Tensor) -> Tensor:
        ctx.save_for_backward(W)
        with autocast_off(x.device):
            return matmul(x, W.to(x.dtype).T)

    @staticmethod
    @once_differentiable
    def backward(  # pyright: ignore[reportIncompatibleMethodOverride]
        ctx: Any, dy: Tensor
    ) -> tuple[Tensor | None, None]:
        (W,) = ctx.saved_tensors
        if not ctx.needs_input_grad[0]:
            return None, None
        with autocast_off(dy.device):
            return matmul(dy, W.to(dy.dtype)), None


def _way(tensor: Tensor) -> Way:
    if not tensor.is_cpu or torch.compiler.is_compiling():  # a compiler chooses its own products
        return Way.PYTORCH
    return way_of(tensor.dtype, cpu_traits())


def _unread(like: Tensor) -> Tensor:
    """A first argument for ``addmm`` with beta = 0, which does not read it."""
    # A fake tensor needs a fake result, which must not be cached.
    return _kept_unread(like.dtype, like.device) if type(like) is Tensor else like.new_empty(())


@functools.cache
def _kept_unread(dtype: torch.dtype, device: torch.device) -> Tensor:
    with torch.inference_mode(False):
        return torch.empty((), dtype=dtype, device=device)


def _onednn_takes(a: Tensor) -> bool:
    """Whether oneDNN may multiply ``a`` now; it rejects an inner dimension of 0."""
    return a.shape[1] > 0 and bool(torch.backends.mkldnn.enabled)


def _by_onednn(x: Tensor, W: Tensor, bias: Tensor | None) -> Tensor:
    assert onednn_linear is not None  # as ``CpuTraits.onednn`` says
    return onednn_linear(x, W, bias, "none", [], "")


def _leaves_thread_idle(rows: int, terms: int, columns: int) -> bool:
    """Whether oneDNN leaves one of two threads idle in a product of this shape."""
    known = COLUMNS[0] <= columns <= COLUMNS[1] and TERMS <= terms <= 2.7 * columns
    return known and columns <= rows <= min(ROWS, 1.8 * columns)


def _parts_apply() -> bool:
    return torch.get_num_threads() == THREADS and bool(torch.backends.mkldnn.enabled)


def _in_parts(a: Tensor, b: Tensor) -> Tensor:
    (rows, _), columns = a.shape, b.shape[1]
    # oneDNN is fastest with multiples of 64 rows, and slow with nearly as many rows as columns.
    count = 2 if rows % 128 == 0 else math.ceil(rows / (0.8 * columns))
    size = math.ceil(rows / count / 64) * 64
    product = a.new_empty(rows, columns)
    for start in range(0, rows, size):
        part = slice(start, start + size)
        torch.mm(a[part], b, out=product[part])
    return product


def _widened(
    a: Tensor, b: Tensor, alpha: float, onto: Tensor | None, *, dtype: torch.dtype | None = None
) -> Tensor:
    """``matmul`` in float32, block by block, rounded once to ``dtype`` (default: that of ``a``)."""
    (n, k), p = a.shape, b.shape[1]
    total = a.new_empty(n, p, dtype=dtype) if onto is None else onto
    height = max(1, ROWS_ELEMENTS // max(1, k))
    with autocast_off(a.device):
        for a_rows, total_rows in zip(a.split(height), total.split(height), strict=True):
            wide = a_rows.float()
            width = max(1, BLOCK_ELEMENTS // max(1, k, len(wide)))
            for b_columns, part in zip(b.split(width, dim=1), total_rows.split(width, dim=1), strict=True):
                before = _unread(wide) if onto is None else part.float()
                beta = 0 if onto is None else 1
                part.copy_(torch.addmm(before, wide, b_columns.float(), beta=beta, alpha=alpha))
    return total
