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
from doratune.functional import FLOATING
from doratune.peft._internals import (
    DoraLinearLayer,
    DoraLinearVariant,
    adapter_modules,
    base_of,
    must_be_called,
)


def matrix_adapter_obstacle(layer: Any, name: str) -> str | None:
    """Why A, B and m of a linear layer's adapter cannot be read; None if they can.

    The engine reads the weights without calling the modules that hold them. A module that is wrapped (FSDP),
    subclassed or hooked (accelerate's offloading, DeepSpeed ZeRO-3) must be called, so it is left to PEFT.
    """
    return (
        variant_obstacle(layer, name, DoraLinearVariant)
        or ("lora_bias not supported" if layer.lora_bias.get(name, False) else None)
        or module_obstacle(layer, name, nn.Linear, DoraLinearLayer)
    )


def variant_obstacle(layer: Any, name: str, dora: type) -> str | None:
    """Which variant the adapter is; None if it is plain LoRA or plain DoRA."""
    variant = layer.lora_variant.get(name)
    if variant is None or type(variant) is dora:
        return None
    return f"variant {type(variant).__name__.removesuffix('Variant')} not supported"


def module_obstacle(layer: Any, name: str, adapter: type[nn.Module], magnitude: type) -> str | None:
    """Why the base or one of the adapter's modules is not as PEFT creates it; None if all are."""
    modules = adapter_modules(layer, name)
    if list(map(type, modules)) != [adapter, adapter, magnitude][: len(modules)]:
        return "adapter weights wrapped by another module"
    return hook_obstacle([base_of(layer), *modules])


def hook_obstacle(modules: Iterable[nn.Module]) -> str | None:
    """Why the modules must be called, not only read; None if they need not be."""
    return "hooks on the layer's parts (offloading or sharding)" if must_be_called(*modules) else None


def weight_obstacle(weight: Tensor, adapter: Iterable[Tensor]) -> str | None:
    """Why a dense base weight cannot be used, also with the adapter's devices; None if it can."""
    if type(weight) not in (Tensor, nn.Parameter, FakeTensor) or weight.dtype not in FLOATING:
        return f"base weight {type(weight).__name__} of {weight.dtype} not supported"
    if weight.requires_grad:
        return "base weight is being trained"
    return device_obstacle(weight, adapter)


def device_obstacle(weight: Tensor, adapter: Iterable[Tensor]) -> str | None:
    """Why the devices of a base weight and its adapter do not fit; None if they do.

    PEFT creates empty adapters (``low_cpu_mem_usage``) on the meta device and fills them before the first
    call.
    """
    device = weight.device
    for tensor in adapter:
        if tensor.device != device and not tensor.is_meta:
            return "adapter and base weight on different devices"
    return None


def shape_obstacle(shape: tuple[int, ...], adapter: Sequence[Tensor]) -> str | None:
    """Why A, B and m do not fit a weight of shape (d_out, d_in), where kernels would read out of bounds."""
    A, B, *m = adapter
    (rank, d_in), fits = A.shape, not m or m[0].shape == shape[:1]
    if fits and d_in == shape[1] and B.shape == (shape[0], rank):
        return None
    return "shapes of adapter and base weight do not fit"
