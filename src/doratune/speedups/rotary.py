"""Rotary position embedding on a CPU in few passes, with a gradient written out.

transformers negates one half of each head, copies both, multiplies twice and adds; its gradient does as much
again. Here, with a head's halves x₁ and x₂::

    y₁ = x₁ cos₁ - x₂ sin₁         dx₁ = dy₁ cos₁ + dy₂ sin₂
    y₂ = x₂ cos₂ + x₁ sin₂         dx₂ = dy₂ cos₂ - dy₁ sin₁

in a product and two sums, with one rounding fewer. The attention layers of transformers call the embedding as
a function of their file; they are given another one under its name.
"""

from __future__ import annotations

import types
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from transformers.models.llama import modeling_llama

from doratune.speedups.spelling import spelled_alike

NAME = "apply_rotary_pos_emb"


def speed_up_rotary(model: nn.Module) -> None:
    """Give attention layers that rotate as LLaMA's do the embedding of this file, in place.

    What they compute stays the same to rounding.

    Args:
        model: Any model.
    """
    for module in model.modules():
        forward = type(module).forward
        # A function with a closure is a decorator's; a forward pass of the module's own is somebody else's.
        if not isinstance(forward, types.FunctionType) or forward.__closure__ or "forward" in vars(module):
            continue
        code, names = forward.__code__, forward.__globals__
        if NAME not in code.co_names or not _rotates_like_llama(names):
            continue
        own = types.FunctionType(code, {**names, NAME: _rotate_both}, code.co_name, forward.__defaults__)
        own.__kwdefaults__ = forward.__kwdefaults__
        module.forward = types.MethodType(own, module)


def _rotates_like_llama(names: dict[str, Any]) -> bool:
    functions = NAME, "rotate_half"
    return all(spelled_alike(names.get(name), getattr(modeling_llama, name)) for name in functions)


def _rotate_both(
    q: Tensor, k: Tensor, cos: Tensor, sin: Tensor, unsqueeze_dim: int = 1
) -> tuple[Tensor, Tensor]:
    """In place of ``apply_rotary_pos_emb``: q and k (..., d); cos and sin of such shapes without heads."""
    if q.device.type != "cpu" or not q.dtype == k.dtype == cos.dtype:
        return modeling_llama.apply_rotary_pos_emb(q, k, cos, sin, unsqueeze_dim)
    cos, sin = cos.unsqueeze(unsqueeze_dim), sin.unsqueeze(unsqueeze_dim)
    rotated: Any = (_Rotation.apply(states, cos, sin) for states in (q, k))
    return tuple(rotated)


class _Rotation(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        ctx.save_for_backward(cos, sin)
        first, second = sin.chunk(2, dim=-1)
        return _turned(x, cos, -first, second)

    @staticmethod
    @once_differentiable
    def backward(  # pyright: ignore[reportIncompatibleMethodOverride]
        ctx: Any, dy: Tensor
    ) -> tuple[Tensor, None, None]:
        cos, sin = ctx.saved_tensors
        first, second = sin.chunk(2, dim=-1)
        return _turned(dy, cos, second, -first), None, None


def _turned(x: Tensor, cos: Tensor, from_second: Tensor, from_first: Tensor) -> Tensor:
    """The product of x and cos, to whose halves the other half of x is added, each times its factor."""
    turned = x * cos
    first, second = x.chunk(2, dim=-1)
    to_first, to_second = turned.chunk(2, dim=-1)
    to_first.addcmul_(second, from_second)
    to_second.addcmul_(first, from_first)
    return turned
