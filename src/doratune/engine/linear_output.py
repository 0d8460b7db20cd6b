"""The output of a linear layer with an adapter, on a CPU and on a GPU, without the graph for a backward pass.

The equations are in ``linear.py``. x is (N, d_in) here, and h = s·(x Aᵀ), (N, r).
"""

from __future__ import annotations

from torch import Tensor

from doratune.engine.autocast import autocast_off
from doratune.engine.channelwise import scale_columns
from doratune.engine.few_rows import add_term, are_few
from doratune.engine.matmul import cast, linear, matmul
from doratune.engine.triton.select import taken
from doratune.engine.weight_norm import over_norm


def output_without_gradients(
    x: Tensor,
    x_adapter: Tensor | None,
    W: Tensor,
    A: Tensor,
    B: Tensor,
    m: Tensor | None,
    norm: Tensor | None,
    g: Tensor | None,
    scaling: float,
    bias: Tensor | None,
) -> Tensor:
    """``adapted_linear`` where nothing needs a gradient."""
    shape, x = x.shape, as_rows(x)
    source = x if x_adapter is None else as_rows(x_adapter)
    with autocast_off(x.device):
        if x.is_cuda:
            by_kernel = m is not None and norm is not None and taken(x, m, norm)
            h = matmul(source, cast(A, x.dtype).T, alpha=scaling)
            y = output_on_gpu(x, h, W, B, m, norm, bias, by_kernel=by_kernel)
        else:
            if g is None and m is not None and norm is not None:
                g = over_norm(m, norm)
            if are_few(x):
                y = _output_of_few_rows(x, source, W, A, B, g, scaling, bias)
            else:
                h = matmul(source, cast(A, x.dtype).T, alpha=scaling)
                y = output_on_cpu(x, h, W, B, g, bias)
    return y if len(shape) == 2 else y.view(*shape[:-1], W.shape[0])


def _output_of_few_rows(
    x: Tensor,
    source: Tensor,
    W: Tensor,
    A: Tensor,
    B: Tensor,
    g: Tensor | None,
    scaling: float,
    bias: Tensor | None,
) -> Tensor:
    """``g ⊙ (x Wᵀ + s·(source Aᵀ)Bᵀ) + bias`` on a CPU; LoRA has no g."""
    y = linear(x, cast(W, x.dtype), None)
    z = add_term(y, source, A, B, scaling)
    if g is not None:
        z.mul_(g)
    if bias is not None:
        z.add_(bias)
    return z if z is y else y.copy_(z)


def output_on_cpu(
    x: Tensor, h: Tensor, W: Tensor, B: Tensor, g: Tensor | None, bias: Tensor | None
) -> Tensor:
    """``g ⊙ (x Wᵀ + h Bᵀ) + bias``; LoRA has no g."""
    y = product_on_cpu(x, h, W, B)
    if g is not None:
        return scale_columns(y, g, out=y, bias=bias)
    return y if bias is None else y.add_(bias)


def product_on_cpu(x: Tensor, h: Tensor, W: Tensor, B: Tensor) -> Tensor:
    """``x Wᵀ + h Bᵀ`` on a CPU."""
    return matmul(h, cast(B, x.dtype).T, onto=matmul(x, cast(W, x.dtype).T))


def output_on_gpu(
    x: Tensor,
    h: Tensor,
    W: Tensor,
    B: Tensor,
    m: Tensor | None,
    norm: Tensor | None,
    bias: Tensor | None,
    *,
    by_kernel: bool,
) -> Tensor:
    """``(m / norm) ⊙ (x Wᵀ + h Bᵀ) + bias``; LoRA has neither m nor norm. The kernels compute m / norm."""
    if m is None or norm is None:
        y = product_on_gpu(x, h, W, B)
        return y if bias is None else y.add_(bias)
    if not by_kernel:
        y = product_on_gpu(x, h, W, B)
        return scale_columns(y, over_norm(m, norm), out=y, bias=bias)
    from doratune.engine.triton import magnitude_forward

    if h.shape[1] <= magnitude_forward.RANKS:
        z = matmul(x, cast(W, x.dtype).T)
        return magnitude_forward.add_and_scale_(z, h, B.contiguous(), m, norm, bias)
    y = product_on_gpu(x, h, W, B)
    return magnitude_forward.scale(y, m, norm, y, bias)


def product_on_gpu(x: Tensor, h: Tensor, W: Tensor, B: Tensor) -> Tensor:
    """``x Wᵀ + h Bᵀ``, the large product last."""
    return matmul(x, cast(W, x.dtype).T, onto=matmul(h, cast(B, x.dtype).T))


def as_rows(tensor: Tensor) -> Tensor:
    """(..., d) as (N, d)."""
    return tensor if tensor.ndim == 2 else tensor.reshape(-1, tensor.shape[-1])
