"""RMSNorm on a CPU in few passes, with an explicit gradient.

transformers computes it in half a dozen float32 operations whose results autograd keeps. Here, for rows x of
d elements::

    r = (‖x‖²/d + ε)^-½      y = w ⊙ (r x)
    u = w ⊙ dy               dx = r u - r³/d · (u·x) x

r x takes one pass and is rounded to x's dtype before it is multiplied by w, as in transformers. dx is the
gradient of PyTorch's weight normalisation, g v/‖v‖, with g = √d and √d/r in place of ‖v‖.
"""

from __future__ import annotations

import functools
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from doratune.engine.channelwise import scale_columns
from doratune.engine.sharded import is_sharded
from doratune.speedups._internals import weight_norm_backward, with_parameters
from doratune.speedups.changes import Changes
from doratune.speedups.same import configuration, difference, random

PART = "rms_norm"
DTYPES = (torch.bfloat16, torch.float32)
"""The dtypes for which this is tested."""


def speed_up_norms(model: nn.Module, changes: Changes) -> None:
    """Replace, in place, the forward pass of RMSNorms like LLaMA's.

    A module counts as one if its only parameter is a vector and its own code computes the same as this file
    on small random inputs, to rounding. A norm falls back to its own code where its input has another dtype
    than its weight, or its weight is trained later.

    Args:
        model: Any model.
        changes: Counts what is replaced and what is left alone.
    """
    for module in model.modules():
        if not _is_norm(module):
            continue
        if (reason := _obstacle(module)) is not None:
            changes.leave(PART, reason)
        else:
            check = functools.partial(_difference, module)
            changes.decide(PART, module, _forward, configuration(module), check)


def _is_norm(module: nn.Module) -> bool:
    """Whether a module has exactly an RMSNorm's parts: a vector of weights and an ε."""
    has_epsilon = not {"variance_epsilon", "eps"}.isdisjoint(vars(module))
    weight: Any = getattr(module, "weight", None) if has_epsilon else None
    return has_epsilon and list(map(id, module.parameters())) == [id(weight)] and weight.ndim == 1


def _obstacle(norm: Any) -> str | None:
    """Why a norm is left alone before its results are compared, or None."""
    if "forward" in vars(norm):
        return "other code has replaced its forward pass"
    if is_sharded(norm.weight):
        return "its weight is sharded"
    if norm.weight.device.type != "cpu":
        return "not on a CPU"
    if norm.weight.requires_grad:
        return "trained"
    return None if norm.weight.dtype in DTYPES else "neither bfloat16 nor float32"


def _difference(norm: Any) -> str | None:
    """How the module's own code differs from ours; rows as small as ε reveal where ε is added."""
    epsilon, weight = getattr(norm, "variance_epsilon", None), random(len(norm.weight))
    if epsilon is None:
        return "its ε has another name"

    def own(x: Tensor) -> Tensor:
        return type(norm).forward(with_parameters(norm, weight=weight.to(x.dtype)), x)

    def ours(x: Tensor) -> Tensor:
        return _rms_norm(x, weight.to(x.dtype), epsilon)

    x = random(3, len(weight))
    reasons = (difference(own, ours, [scale * x], norm.weight.dtype) for scale in (1.0, epsilon**0.5))
    return next((reason for reason in reasons if reason is not None), None)


def _forward(norm: Any, x: Tensor) -> Tensor:
    weight = norm.weight
    if weight.requires_grad or x.dtype != weight.dtype or x.dtype not in DTYPES or not x.numel():
        return type(norm).forward(norm, x)
    return _rms_norm(x, weight, norm.variance_epsilon)


def _rms_norm(x: Tensor, weight: Tensor, epsilon: float) -> Tensor:
    """The RMSNorm of x (..., d) with a constant weight (d,) of x's dtype."""
    y: Any = _RMSNorm.apply(x.reshape(-1, x.shape[-1]).contiguous(), weight, epsilon)
    return y.view(x.shape)


class _RMSNorm(torch.autograd.Function):
    """x is (N, d), the weight (d,) and constant."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, epsilon: float) -> Tensor:
        norm = torch.linalg.vector_norm(x, dim=1, dtype=torch.float32)
        r = norm.square_().div_(x.shape[1]).add_(epsilon).rsqrt_()
        ctx.save_for_backward(x, weight, r)
        y = torch.empty_like(x)
        scale_columns(x[None], r, out=y[None])  # the rows are the columns of a (1, N, d) tensor
        return y.mul_(weight)

    @staticmethod
    @once_differentiable
    def backward(  # pyright: ignore[reportIncompatibleMethodOverride]
        ctx: Any, dy: Tensor
    ) -> tuple[Tensor, None, None]:
        x, weight, r = ctx.saved_tensors
        root = x.shape[1] ** 0.5
        g = x.new_full((x.shape[0], 1), root)
        # √d is rounded to x's dtype; the weight makes up for the error.
        u = dy.mul(weight * (root / g[0, 0].item()))
        dx, _ = weight_norm_backward(u.contiguous(), x, g, root / r[:, None], 0)
        return dx, None, None
