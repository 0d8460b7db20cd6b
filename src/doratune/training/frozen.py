"""Frozen linear layers beside the adapted ones, by the engine's products where PyTorch's own are slower."""

from __future__ import annotations

import types
from typing import Any

import torch
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn.functional import linear

from doratune.engine.linear import autocast_off
from doratune.engine.products import made_otherwise, mm


def speed_up_frozen(model: nn.Module) -> None:
    """Replace the forward pass of frozen linear layers without an adapter, where that is faster.

    It is done in place, for ``nn.Linear`` itself. What the layers compute stays the same to rounding; a layer
    whose weight is trained after all, or would be cast by autocast, computes as before.

    Args:
        model: Any model.
    """
    # An adapted layer is the engine's or PEFT's own; the engine would take another forward pass of its base
    # for a reason to leave it to PEFT.
    adapted = {layer.get_base_layer() for layer in model.modules() if isinstance(layer, BaseTunerLayer)}
    for module in model.modules():
        # A quantised weight is of a type of its own.
        if type(module) is not nn.Linear or type(module.weight) is not nn.Parameter or module in adapted:
            continue
        if "forward" in vars(module):  # somebody else's
            continue
        if not module.weight.requires_grad and made_otherwise(module.weight):
            module.forward = types.MethodType(_forward, module)


def _forward(layer: nn.Linear, x: Tensor) -> Tensor:
    weight = layer.weight
    autocast = torch.is_autocast_enabled(x.device.type)
    dtype = torch.get_autocast_dtype(x.device.type) if autocast else x.dtype
    if weight.requires_grad or weight.dtype != dtype:
        return linear(x, weight, layer.bias)
    x = x.to(dtype)
    y: Any = _Product.apply(x.reshape(-1, x.shape[-1]), weight)
    y = y.view(*x.shape[:-1], weight.shape[0])
    return y if layer.bias is None else y + layer.bias


class _Product(torch.autograd.Function):
    """x Wᵀ for x (N, d_in) and a constant weight W (d_out, d_in)."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor) -> Tensor:
        ctx.save_for_backward(weight)
        with autocast_off(x.device):
            return mm(x, weight.T)

    @staticmethod
    @once_differentiable
    def backward(  # pyright: ignore[reportIncompatibleMethodOverride]
        ctx: Any, dy: Tensor
    ) -> tuple[Tensor | None, None]:
        (weight,) = ctx.saved_tensors
        return mm(dy, weight) if ctx.needs_input_grad[0] else None, None
