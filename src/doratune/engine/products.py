"""Matrix products by the library that is fastest at them.

PyTorch leaves float32 products on a CPU to MKL. On AMD's processors with AVX-512, oneDNN, to which PyTorch
leaves products of bfloat16 and float16, is faster at float32 too: more than twice as fast on a Zen 5. It is
reached by the operation that PyTorch's own compiler puts in the place of a linear layer.
"""

from __future__ import annotations

import functools

import torch
from torch import Tensor
from torch.nn import functional


def mm(a: Tensor, b: Tensor) -> Tensor:
    """``a b``, of any strides. Without gradients: for use inside autograd functions.

    With ``torch.backends.mkldnn.enabled = False`` it is left to PyTorch's own choice.

    Args:
        a: (n, k), floating.
        b: (k, p), a's dtype.

    Returns:
        (n, p) in a's dtype.

    Raises:
        RuntimeError: From PyTorch, if the shapes do not fit.
    """
    return _by_onednn(a, b.T, None) if left_to_onednn(a) else a @ b


def linear(x: Tensor, W: Tensor, bias: Tensor | None) -> Tensor:
    """``x Wᵀ + bias`` likewise.

    Args:
        x: (n, d_in), floating.
        W: (d_out, d_in), x's dtype.
        bias: (d_out,), x's dtype, or None.

    Returns:
        (n, d_out) in x's dtype.

    Raises:
        RuntimeError: From PyTorch, if the shapes do not fit.
    """
    return _by_onednn(x, W, bias) if left_to_onednn(x) else functional.linear(x, W, bias)


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
