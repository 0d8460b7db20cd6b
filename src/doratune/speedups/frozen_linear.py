"""Frozen linear layers beside the adapted ones, by the engine's products where PyTorch's own are slower."""

from __future__ import annotations

import types

import torch
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import Tensor, nn
from torch.nn.functional import linear

from doratune.engine.frozen import frozen_linear
from doratune.engine.products import made_otherwise


def speed_up_frozen(model: nn.Module) -> None:
    """Replace the forward pass of frozen linear layers without an adapter, where that is faster.

    It is done in place, for ``nn.Linear`` itself. What the layers compute stays the same to rounding; a layer
    whose weight is trained after all, or would be cast by autocast, computes as before.

    Args:
        model: Any model.
    """
    # An adapted layer is the engine's or PEFT's own; the engine would take another forward pass of its base,
    # or of an adapter that is frozen too, for a reason to leave it to PEFT.
    tuned = [layer for layer in model.modules() if isinstance(layer, BaseTunerLayer)]
    adapted = {part for layer in tuned for part in layer.modules()}
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
    return frozen_linear(x.to(dtype), weight, layer.bias)
