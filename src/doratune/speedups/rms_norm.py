"""RMSNorm on a CPU in few passes, with a gradient written out.

transformers computes it by half a dozen operations in float32 whose outcomes autograd keeps. Here, for rows x
of d elements::

    r = (‖x‖²/d + ε)^-½      y = w ⊙ (r x)
    u = w ⊙ dy               dx = r u - r³/d · (u·x) x

x r is one pass of PyTorch's batch norm, whose channels are the rows here, rounded to x's dtype before w comes
in, as transformers rounds it. dx is the gradient of PyTorch's weight normalisation, g v/‖v‖, at g = √d and
with √d/r in the place of ‖v‖.
"""

from __future__ import annotations

import types
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from transformers.models.llama.modeling_llama import LlamaRMSNorm

from doratune.engine.constants import constant_like
from doratune.speedups.spelling import spelled_alike

DTYPES = (torch.bfloat16, torch.float32)
"""That PyTorch's kernels are tested for here."""


def speed_up_norms(model: nn.Module) -> None:
    """Replace, in place, the forward pass of norms that are spelled as LLaMA's and lie on a CPU.

    What they compute stays the same to rounding. A norm whose weight is trained, or that gets another dtype
    than its own, computes as before.

    Args:
        model: Any model.
    """
    for module in model.modules():
        # A module with a forward pass of its own has somebody else's.
        alike = spelled_alike(type(module).forward, LlamaRMSNorm.forward) and "forward" not in vars(module)
        if alike and module.weight.device.type == "cpu":
            module.forward = types.MethodType(_forward, module)


def _forward(norm: Any, x: Tensor) -> Tensor:
    weight = norm.weight
    if weight.requires_grad or x.dtype != weight.dtype or x.dtype not in DTYPES or not x.numel():
        return type(norm).forward(norm, x)
    y: Any = _RMSNorm.apply(x.reshape(-1, x.shape[-1]).contiguous(), weight, norm.variance_epsilon)
    return y.view(x.shape)


class _RMSNorm(torch.autograd.Function):
    """x is (N, d), the weight (d,) and constant."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, epsilon: float) -> Tensor:
        norm = torch.linalg.vector_norm(x, dim=1, dtype=torch.float32)
        r = norm.square_().div_(x.shape[1]).add_(epsilon).rsqrt_()
        ctx.save_for_backward(x, weight, r)
        y, zeros, ones, empty = torch.empty_like(x), constant_like(r, 0), constant_like(r, 1), r.new_empty(0)
        torch.native_batch_norm(x[None], r, None, zeros, ones, False, 0.0, 0.0, out=(y[None], empty, empty))
        return y.mul_(weight)

    @staticmethod
    @once_differentiable
    def backward(  # pyright: ignore[reportIncompatibleMethodOverride]
        ctx: Any, dy: Tensor
    ) -> tuple[Tensor, None, None]:
        x, weight, r = ctx.saved_tensors
        root = x.shape[1] ** 0.5
        g = x.new_full((x.shape[0], 1), root)
        # √d is rounded to x's dtype; what it is off by goes into the weight.
        u = dy.mul(weight * (root / g[0, 0].item()))
        dx, _ = torch.ops.aten._weight_norm_interface_backward(u.contiguous(), x, g, root / r[:, None], 0)
        return dx, None, None
