"""Rotary position embedding on a CPU in few passes, with an explicit gradient.

transformers negates one half of each head, copies both, multiplies twice and adds; its gradient does the same
again. Here, with a head's halves x₁ and x₂::

    y₁ = x₁ cos₁ - x₂ sin₁         dx₁ = dy₁ cos₁ + dy₂ sin₂
    y₂ = x₂ cos₂ + x₁ sin₂         dx₂ = dy₂ cos₂ - dy₁ sin₁

in one product and two additions, with one rounding fewer. Attention layers of transformers call the embedding
as a function of their file; a replaced layer finds this one under that name.
"""

from __future__ import annotations

import inspect
import types
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from doratune.speedups._internals import ROTARY
from doratune.speedups.changes import Changes
from doratune.speedups.same import difference, random

PART = "rotary"
PARAMETERS = ["q", "k", "cos", "sin", "unsqueeze_dim"]


def speed_up_rotary(model: nn.Module, changes: Changes) -> None:
    """Replace, in place, the rotary embedding of attention layers that rotate as LLaMA's do.

    A layer does if the function that it calls computes the same as this file on small random inputs, to
    rounding.

    Args:
        model: Any model.
        changes: Counts what is replaced and what is left alone.
    """
    forwards: dict[Any, Callable[..., Any]] = {}
    for module in model.modules():
        forward = type(module).forward
        if not isinstance(forward, types.FunctionType) or ROTARY not in forward.__code__.co_names:
            continue
        own: Any = forward.__globals__.get(ROTARY)
        if (reason := _obstacle(module, own)) is not None:
            changes.leave(PART, reason)
            continue
        if forward not in forwards:
            forwards[forward] = _with_rotation(forward, _rotation(own))
        floating = (one.dtype for one in module.parameters() if one.is_floating_point())
        dtype = next(floating, torch.float32)  # a quantised weight has none
        changes.decide(
            PART,
            module,
            forwards[forward],
            (own, dtype),
            lambda own=own, dtype=dtype: _difference(own, dtype),
        )


def _obstacle(layer: nn.Module, own: Any) -> str | None:
    """Why a layer is left alone before its function's results are compared, or None."""
    if "forward" in vars(layer):
        return "other code has replaced its forward pass"
    if type(layer).forward.__closure__ or not callable(own):
        return "its forward pass is wrapped"
    if any(parameter.device.type != "cpu" for parameter in layer.parameters()):
        return "not on a CPU"
    if list(inspect.signature(own).parameters) != PARAMETERS:
        return "its function takes different arguments"
    config = getattr(layer, "config", None)
    turned = (getattr(config, "rope_parameters", None) or {}).get("partial_rotary_factor") or 1.0
    return None if turned == 1.0 else "only part of each head is rotated"


def _difference(own: Any, dtype: torch.dtype) -> str | None:
    # In transformers the two halves of cos, and of sin, are equal; the formula does not rely on it.
    heads, factors = random(3, 1, 2, 5, 8), random(2, 1, 5, 8)
    inputs = [heads[0], heads[1][:, :1], *factors]

    def first_two(function: Any) -> Callable[..., Any]:
        return lambda q, k, cos, sin: function(q, k, cos.detach(), sin.detach())

    return difference(first_two(own), first_two(_rotation(own)), inputs, dtype)


def _with_rotation(forward: types.FunctionType, rotation: Callable[..., Any]) -> Callable[..., Any]:
    """The same forward pass with another function under the name of the rotary embedding."""
    names = {**forward.__globals__, ROTARY: rotation}
    changed = types.FunctionType(forward.__code__, names, forward.__name__, forward.__defaults__)
    changed.__kwdefaults__ = forward.__kwdefaults__
    return changed


def _rotation(own: Callable[..., Any]) -> Callable[..., tuple[Tensor, Tensor]]:
    """The replacement for a model's ``own`` function, which it calls where it does not apply."""

    def rotate(
        q: Tensor, k: Tensor, cos: Tensor, sin: Tensor, unsqueeze_dim: int = 1
    ) -> tuple[Tensor, Tensor]:
        """Rotate q and k (..., d); cos and sin have their shapes without the heads."""
        if q.device.type != "cpu" or not q.dtype == k.dtype == cos.dtype or q.shape[-1] != cos.shape[-1]:
            return own(q, k, cos, sin, unsqueeze_dim)
        cos, sin = cos.unsqueeze(unsqueeze_dim), sin.unsqueeze(unsqueeze_dim)
        rotated: Any = (_Rotation.apply(states, cos, sin) for states in (q, k))
        return tuple(rotated)

    return rotate


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
    """``x * cos``, with the other half of x, times its factor, added to each half."""
    turned = x * cos
    first, second = x.chunk(2, dim=-1)
    to_first, to_second = turned.chunk(2, dim=-1)
    to_first.addcmul_(second, from_second)
    to_second.addcmul_(first, from_first)
    return turned
