"""The norm of each row of V = W + s·B·A, without V.

With U = W Aᵀ (d_out, r) and G = A Aᵀ (r, r)::

    n² = ‖W‖² + 2s·Σ(B ⊙ U) + s²·Σ((B G) ⊙ B)        sums over r

so the largest temporary is U, and ‖W‖² of a frozen W is computed once and passed in. The norm is a constant
of the backward pass (arXiv 2402.09353, section 4.3), so it is detached unless its gradient is wanted.

Precision: float32, or float64 where an input is float64. Where s·B·A cancels W, the three terms are large
and n² is small: with rounding unit ε the relative error of n² is about ε·(‖W‖ + ‖s·B·A‖)²/n². That is of the
order of ε unless a row has shrunk far below its parts; at n = ‖W‖/100 it is 10⁴ ε or more, 0.1 % in float32.
A row that cancels completely comes out as zero or as about √ε‖W‖. The dense sum has no such error. If the
user has enabled TF32, it applies to U as to any float32 product.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from doratune.engine.buffers import buffered_rows
from doratune.engine.matmul import matmul
from doratune.engine.triton.norm_cache import NormMemory
from doratune.engine.triton.select import capturing, taken

BUFFER_ELEMENTS = 1 << 21
"""The most elements of W held in a wider dtype at a time: 8 MiB in float32."""


def norm_dtype(*tensors: Tensor) -> torch.dtype:
    """The dtype of the norms: float64 if any of the tensors is float64, otherwise float32."""
    return torch.float64 if any(tensor.dtype == torch.float64 for tensor in tensors) else torch.float32


@torch.no_grad()
def row_norm_squared(W: Tensor) -> Tensor:
    """‖W‖² per row.

    Args:
        W: (d_out, d_in), floating.

    Returns:
        (d_out,), float32 (float64 for a float64 W), detached.

    Raises:
        RuntimeError: From PyTorch, if W is not a floating matrix.
    """
    if W.is_cuda:  # one pass that widens in registers
        return torch.linalg.vector_norm(W, dim=1, dtype=norm_dtype(W)).square_()
    squared = torch.empty(W.shape[0], dtype=norm_dtype(W), device=W.device)
    for rows, wide in _wide_rows(W, squared.dtype):
        torch.linalg.vector_norm(wide, dim=1, out=squared[rows])
    return squared.square_()


def dora_row_norm(
    W: Tensor, A: Tensor, B: Tensor, scaling: float, weight_norm_sq: Tensor, *, detach: bool = True
) -> Tensor:
    """‖W + s·B·A‖ per row, in the factored form.

    Autocast must be off: it would compute U and G in its lower precision.

    Args:
        W: Base weight, (d_out, d_in), floating.
        A: Down projection, (r, d_in), floating.
        B: Up projection, (d_out, r), floating.
        scaling: LoRA's s.
        weight_norm_sq: ``row_norm_squared(W)``, (d_out,).
        detach: Treat the norm as a constant. Otherwise gradients reach A and B.

    Returns:
        (d_out,), float32 (float64 if W, A or B is), never negative.

    Raises:
        RuntimeError: From PyTorch, if the shapes do not fit.
    """
    if detach:
        with torch.no_grad():
            dtype = norm_dtype(W, A, B)
            return norm_of_product(weighted_rows(W, A.to(dtype)), A, B, scaling, weight_norm_sq)
    norm: Any = _RowNorm.apply(W, A, B, scaling, weight_norm_sq)
    return norm


def current_row_norm(
    W: Tensor, A: Tensor, B: Tensor, scaling: float, memory: NormMemory | None = None
) -> Tensor:
    """``dora_row_norm``, detached, where ‖W‖² is not known.

    Args:
        W: Base weight, (d_out, d_in), floating.
        A: Down projection, (r, d_in), floating.
        B: Up projection, (d_out, r), floating.
        scaling: LoRA's s.
        memory: The last norm of this layer and adapter on a GPU, reused for the same content where checking
            takes less time than the norm.

    Returns:
        (d_out,), float32 (float64 if W, A or B is), never negative.

    Raises:
        RuntimeError: From PyTorch, if the shapes do not fit.
    """
    if taken(W, A, B) and W.dtype == torch.bfloat16 and _fit_a_kernel(W, A, B):
        with torch.no_grad():
            return _norm_by_kernel(W, A, B, scaling, memory)
    return dora_row_norm(W, A, B, scaling, row_norm_squared(W))


def joint_row_norms(
    weights: Sequence[tuple[Tensor, Tensor, Tensor, float]],
) -> list[Tensor | None]:
    """``current_row_norm`` of many layers on GPUs, in few launches instead of one for each layer.

    Args:
        weights: W, A, B and s of each, as for ``current_row_norm``.

    Returns:
        The norm of each; None where it must be computed apart: not in bfloat16, above the kernel's rank, not
        aligned, on a CPU, or while a CUDA graph is captured.

    Raises:
        RuntimeError: From PyTorch or Triton, if a launch fails.
    """
    norms: list[Tensor | None] = [None] * len(weights)
    places = [
        place
        for place, (W, A, B, _) in enumerate(weights)
        if taken(W, A, B) and W.dtype == torch.bfloat16 and _fit_a_kernel(W, A, B)
    ]
    if places and not any(map(capturing, {weights[place][0].device for place in places})):
        from doratune.engine.triton import norm

        matrices = {place: norm.Matrix(*weights[place]) for place in places}
        together = {place: one for place, one in matrices.items() if norm.joinable(one)}
        for place, found in zip(together, norm.dora_row_norms(list(together.values())), strict=True):
            norms[place] = found
    return norms


def _fit_a_kernel(W: Tensor, A: Tensor, B: Tensor) -> bool:
    contiguous = W.is_contiguous() and A.is_contiguous() and B.is_contiguous()
    return contiguous and A.shape[1:] == W.shape[1:] and B.shape == (W.shape[0], A.shape[0])


def _norm_by_kernel(W: Tensor, A: Tensor, B: Tensor, scaling: float, memory: NormMemory | None) -> Tensor:
    from doratune.engine.triton import norm, tiled_norm

    if A.shape[0] <= norm.RANKS:  # as fast as hashing W
        return norm.dora_row_norm(W, A, B, scaling)
    return tiled_norm.dora_row_norm(W, A, B, scaling, memory)


@torch.no_grad()
def norm_of_product(U: Tensor, A: Tensor, B: Tensor, scaling: float, weight_norm_sq: Tensor) -> Tensor:
    """The norm from U = W Aᵀ, for a base weight that is known only by its products.

    Args:
        U: W Aᵀ, (d_out, r), float32 or float64; the result has its dtype.
        A: Down projection, (r, d_in), floating.
        B: Up projection, (d_out, r), floating.
        scaling: LoRA's s.
        weight_norm_sq: ‖W‖² per row, (d_out,).

    Returns:
        (d_out,), detached, never negative.

    Raises:
        RuntimeError: From PyTorch, if the shapes do not fit.
    """
    A, B = A.to(U.dtype), B.to(U.dtype)
    # 2s·Σ(B ⊙ U) + s²·Σ((B G) ⊙ B) = s·Σ(B ⊙ (2U + s·B G))
    update = torch.addmm(U, B, A @ A.T, beta=2, alpha=scaling).mul_(B).sum(dim=1)
    # Rounding can leave a cancelled row slightly below zero.
    return torch.add(weight_norm_sq.to(U.dtype), update, alpha=scaling).clamp_(min=0).sqrt_()


def weighted_rows(W: Tensor, A: Tensor) -> Tensor:
    """W Aᵀ, (d_out, r), in A's dtype, with W (d_out, d_in) widened by blocks of rows.

    On a GPU, if W is bfloat16, a float32 A is split into the sum of two bfloat16 matrices, which keeps 16
    bits of each element. Their products with W are exact and summed in float32.
    """
    if W.is_cuda and W.dtype == torch.bfloat16 and A.dtype == torch.float32:
        high = A.to(W.dtype)
        both = torch.cat((high, (A - high).to(W.dtype)))
        return torch.mm(W, both.T, out_dtype=A.dtype).view(W.shape[0], 2, A.shape[0]).sum(dim=1)
    if W.dtype == A.dtype:
        return matmul(W, A.T)
    U = A.new_empty(W.shape[0], A.shape[0])
    for rows, wide in _wide_rows(W, A.dtype):
        U[rows] = matmul(wide, A.T)
    return U


def over_norm(numerator: Tensor, norm: Tensor) -> Tensor:
    """``numerator / norm``, 0 where the norm is 0, in at least the norm's precision; both (d_out,)."""
    return numerator / norm.masked_fill(norm == 0, torch.inf)


class _RowNorm(torch.autograd.Function):
    """The norm with its gradients.

    With k = dn / n::

        dB = s·k ⊙ (U + s·B G)        dA = s·(k ⊙ B)ᵀ (W + s·B A)
    """

    @staticmethod
    def forward(ctx: Any, W: Tensor, A: Tensor, B: Tensor, scaling: float, weight_norm_sq: Tensor) -> Tensor:
        U = weighted_rows(W, A.to(norm_dtype(W, A, B)))
        n = norm_of_product(U, A, B, scaling, weight_norm_sq)
        ctx.scaling = scaling
        ctx.save_for_backward(W, A, B, U, n)
        return n

    @staticmethod
    @once_differentiable
    def backward(  # pyright: ignore[reportIncompatibleMethodOverride]
        ctx: Any, dn: Tensor
    ) -> tuple[Tensor | None, ...]:
        W, A, B, U, n = ctx.saved_tensors
        s, wide_A, wide_B = ctx.scaling, A.to(n.dtype), B.to(n.dtype)
        k = over_norm(dn, n)[:, None]
        kB = k * wide_B
        dB = s * k * (U + s * wide_B @ (wide_A @ wide_A.T))
        dA = s * s * (kB.T @ wide_B) @ wide_A
        for rows, wide in _wide_rows(W, n.dtype):
            dA.addmm_(kB[rows].T, wide, alpha=s)
        return None, dA.to(A.dtype), dB.to(B.dtype), None, None


def _wide_rows(W: Tensor, dtype: torch.dtype) -> Iterator[tuple[slice, Tensor]]:
    """Slices of W's rows, each with its rows in ``dtype``; the next slice may reuse their memory."""
    if W.dtype == dtype:
        yield slice(0, W.shape[0]), W
        return
    for rows, buffer in buffered_rows(W, dtype, BUFFER_ELEMENTS):
        yield rows, buffer.copy_(W[rows])
