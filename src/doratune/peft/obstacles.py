"""Decides which of PEFT's layers and adapters the engine can compute, and says why not the others.

PEFT, PyTorch and the user can change a layer in too many ways to track, so every call checks again. For a
linear layer that takes a few microseconds, because modules and weights are read directly from the
dictionaries that hold them; ``nn.Module.__getattr__`` takes ten times as long.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from torch import Tensor, nn

from doratune.engine._internals import FakeTensor
from doratune.engine.sharded import is_sharded
from doratune.functional import FLOATING
from doratune.peft._internals import (
    DoraLinearLayer,
    DoraLinearVariant,
    adapter_modules,
    base_of,
    class_below_fsdp,
    device_hook,
    is_fsdp_unit,
    must_be_called,
)

WEIGHTS_SHARDED = "weights are sharded outside the forward pass"
"""FSDP2's parameters are whole while their unit is called, so this one need not hold in a call."""
PLAIN = (Tensor, nn.Parameter, FakeTensor)
"""Types of weights that kernels can read, or that have no content."""
IN_UNITS = "the adapter's modules are units of FSDP2"
"""The engine can compute the layer inside calls of these modules: see ``units.py``."""


def matrix_adapter_obstacle(layer: Any, name: str, *, entered: bool) -> str | None:
    """Why A, B and m of a linear layer's adapter cannot be read; None if they can.

    The engine reads the weights without calling the modules that hold them. A module that is wrapped (FSDP1),
    subclassed or hooked (accelerate's offloading, DeepSpeed ZeRO-3) must be called, so it is left to PEFT.
    """
    return (
        variant_obstacle(layer, name, DoraLinearVariant)
        or ("lora_bias not supported" if layer.lora_bias.get(name, False) else None)
        or module_obstacle(layer, name, nn.Linear, DoraLinearLayer, entered=entered)
    )


def variant_obstacle(layer: Any, name: str, dora: type) -> str | None:
    """Which variant the adapter is; None if it is plain LoRA or plain DoRA."""
    variant = layer.lora_variant.get(name)
    if variant is None or type(variant) is dora:
        return None
    return f"variant {type(variant).__name__.removesuffix('Variant')} not supported"


def module_obstacle(
    layer: Any, name: str, adapter: type[nn.Module], magnitude: type, *, entered: bool
) -> str | None:
    """Why the base or one of the adapter's modules is not as PEFT creates it; None if all are."""
    modules = adapter_modules(layer, name)
    expected = [adapter, adapter, magnitude][: len(modules)]
    if list(map(type, modules)) != expected and list(map(class_below_fsdp, modules)) != expected:
        return "adapter weights wrapped by another module"
    return hook_obstacle(base_of(layer), modules, entered=entered)


def hook_obstacle(base: nn.Module, modules: Iterable[nn.Module], *, entered: bool) -> str | None:
    """Why a layer's parts must be called, not only read; None if they need not be.

    Args:
        base: The frozen layer.
        modules: The adapter's modules.
        entered: Those that are units of FSDP2 are being called.
    """
    if not must_be_called(base, *modules):
        return None
    if must_be_called(base):
        return _hooks(base)
    obstacle = None
    for module in modules:
        if must_be_called(module):
            if not is_fsdp_unit(module):
                return _hooks(module)
            obstacle = None if entered else IN_UNITS
    return obstacle


def _hooks(module: Any) -> str:
    """What the hooks of a module are for, as far as that is known."""
    if device_hook(module) is not None:
        return "accelerate's hooks on the layer's parts do more than move the input, such as offloading"
    if any(hasattr(one, "ds_id") for one in module.parameters(recurse=False)):
        return "hooks on the layer's parts (DeepSpeed ZeRO-3)"
    return "hooks on the layer's parts (offloading or sharding)"


def weight_obstacle(weight: Tensor, adapter: Iterable[Tensor]) -> str | None:
    """Why a dense base weight cannot be used, also with the adapter's devices; None if it can."""
    if type(weight) not in PLAIN or weight.dtype not in FLOATING:
        if is_sharded(weight):
            return WEIGHTS_SHARDED
        return f"base weight {type(weight).__name__} of {weight.dtype} not supported"
    if weight.ndim < 2:
        return "weights are sharded and flat (FSDP1 or ZeRO-3)"
    if weight.requires_grad:
        # A view that FSDP1 takes of its flat parameter, whose other parts are trained.
        return "base weight is being trained" if weight.is_leaf else "base weight is part of a trained tensor"
    return device_obstacle(weight, adapter)


def device_obstacle(weight: Tensor, adapter: Iterable[Tensor]) -> str | None:
    """Why a base weight and its adapter are not on one device, whole; None if they are.

    PEFT creates empty adapters (``low_cpu_mem_usage``) on the meta device and fills them before the first
    call.
    """
    device = weight.device
    for tensor in adapter:
        if type(tensor) not in PLAIN and is_sharded(tensor):
            return WEIGHTS_SHARDED
        if tensor.device != device and not tensor.is_meta:
            return "adapter and base weight on different devices"
    return None


def shape_obstacle(shape: tuple[int, ...], adapter: Sequence[Tensor]) -> str | None:
    """Why A, B and m do not fit a weight of shape (d_out, d_in), where kernels would read out of bounds."""
    d_out, d_in = shape
    A, B, *m = adapter
    rank = A.shape[0]
    if A.shape == (rank, d_in) and B.shape == (d_out, rank) and (not m or m[0].shape == (d_out,)):
        return None
    return "shapes of adapter and base weight do not fit"
