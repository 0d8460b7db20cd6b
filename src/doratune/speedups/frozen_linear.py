"""Lets frozen linear layers without an adapter use the engine's matrix products where they are faster."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import linear

from doratune.engine.matmul import differs_from_pytorch, frozen_linear
from doratune.engine.sharded import is_sharded
from doratune.peft import adapted_modules
from doratune.speedups._internals import with_parameters
from doratune.speedups.changes import Changes
from doratune.speedups.same import difference, random

PART = "frozen_linear"


def speed_up_frozen(model: nn.Module, changes: Changes) -> None:
    """Replace the forward pass of frozen linear layers without an adapter, where that is faster.

    This changes ``nn.Linear`` layers in place, but no subclasses. Results stay the same to rounding. A layer
    whose weight is trained later, or that autocast would cast, falls back to PyTorch's product.

    Args:
        model: Any model.
        changes: Counts what is replaced and what is left alone.
    """
    # A replaced forward pass inside an adapted layer would make the engine leave that layer to PEFT.
    adapted = adapted_modules(model)
    for module in model.modules():
        if type(module) is not nn.Linear or module in adapted:
            continue
        if is_sharded(module.weight):
            changes.leave(PART, "its weight is sharded")
            continue
        if type(module.weight) is not nn.Parameter:  # quantised
            continue
        if (reason := _obstacle(module)) is not None:
            changes.leave(PART, reason)
            continue
        key = (module.weight.dtype, module.bias is None)
        changes.decide(PART, module, _forward, key, lambda module=module: _difference(module))


def _obstacle(layer: nn.Linear) -> str | None:
    if "forward" in vars(layer):
        return "other code has replaced its forward pass"
    if layer.weight.requires_grad:
        return "trained"
    return None if differs_from_pytorch(layer.weight) else "PyTorch's product is the fastest here"


def _difference(layer: nn.Linear) -> str | None:
    """How the class's own code differs from ours, on a small weight."""

    def small(x: Tensor) -> Any:
        parts = {"weight": random(6, 4), **({} if layer.bias is None else {"bias": random(6)})}
        return with_parameters(layer, **{name: part.to(x.dtype) for name, part in parts.items()})

    return difference(
        lambda x: nn.Linear.forward(small(x), x),
        lambda x: _forward(small(x), x),
        [random(3, 4)],
        layer.weight.dtype,
    )


def _forward(layer: nn.Linear, x: Tensor) -> Tensor:
    weight = layer.weight
    autocast = torch.is_autocast_enabled(x.device.type)
    dtype = torch.get_autocast_dtype(x.device.type) if autocast else x.dtype
    if weight.requires_grad or weight.dtype != dtype:
        return linear(x, weight, layer.bias)
    return frozen_linear(x.to(dtype), weight, layer.bias)
