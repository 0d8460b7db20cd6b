"""Which of PEFT's layers and adapters the engine can compute, and why not the others.

PEFT, PyTorch and the user can change a layer in too many ways to be told of each, so every call of a layer
asks again. For a linear layer that takes a few microseconds, since modules and weights are read from the
dictionaries that hold them: ``nn.Module.__getattr__`` takes ten times as long.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from peft.tuners.lora.dora import DoraLinearLayer
from peft.tuners.lora.variants import DoraLinearVariant
from torch import Tensor, nn

FLOATING = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


def matrix_adapter_obstacle(layer: Any, name: str) -> str | None:
    """Why A, B and m of a linear layer's adapter cannot be read; None if they can.

    The engine reads the weights without calling the modules that hold them. A module that is wrapped (FSDP),
    subclassed or hooked (accelerate's offloading, DeepSpeed ZeRO-3) must be called, so it stays with PEFT.
    """
    return (
        variant_obstacle(layer, name, DoraLinearVariant)
        or ("lora_bias not supported" if layer.lora_bias.get(name, False) else None)
        or module_obstacle(layer, name, nn.Linear, DoraLinearLayer)
    )


def variant_obstacle(layer: Any, name: str, dora: type) -> str | None:
    """Whether the adapter is of another kind than plain LoRA or plain DoRA, and which."""
    variant = layer.lora_variant.get(name)
    if variant is None or type(variant) is dora:
        return None
    return f"variant {type(variant).__name__.removesuffix('Variant')} not supported"


def module_obstacle(layer: Any, name: str, adapter: type[nn.Module], magnitude: type) -> str | None:
    """Whether the base or one of the adapter's modules is not what PEFT makes, or is hooked."""
    modules = adapter_modules(layer, name)
    if list(map(type, modules)) != [adapter, adapter, magnitude][: len(modules)]:
        return "adapter weights wrapped by another module"
    return hook_obstacle([base_of(layer), *modules])


def hook_obstacle(modules: Iterable[nn.Module]) -> str | None:
    """Whether a module must be called for something to happen."""
    for module in modules:
        own = module.__dict__
        if (
            "forward" in own
            or own["_forward_hooks"]
            or own["_forward_pre_hooks"]
            or own["_backward_hooks"]
            or own["_backward_pre_hooks"]
        ):
            return "hooks on the layer's parts (offloading or sharding)"
    return None


def weight_obstacle(weight: Tensor, adapter: Iterable[Tensor]) -> str | None:
    """Whether a dense base weight cannot be used; the devices are compared with the adapter's."""
    if type(weight) not in (Tensor, nn.Parameter) or weight.dtype not in FLOATING:
        return f"base weight {type(weight).__name__} of {weight.dtype} not supported"
    if weight.requires_grad:
        return "base weight is being trained"
    return device_obstacle(weight, adapter)


def device_obstacle(weight: Tensor, adapter: Iterable[Tensor]) -> str | None:
    """Whether a base weight and its adapter are not in one place.

    PEFT makes empty adapters (``low_cpu_mem_usage``) on the meta device and fills them before the first call.
    """
    device = weight.device
    for tensor in adapter:
        if tensor.device != device and not tensor.is_meta:
            return "adapter and base weight on different devices"
    return None


def base_of(layer: Any) -> Any:
    """``layer.base_layer``."""
    return layer._modules["base_layer"]


def adapter_modules(layer: Any, name: str) -> list[Any]:
    """The modules that hold A, B and, for DoRA, m."""
    children = layer._modules
    modules = [children["lora_A"]._modules[name], children["lora_B"]._modules[name]]
    if layer.use_dora.get(name, False):
        modules.append(children["lora_magnitude_vector"]._modules[name])
    return modules


def adapter_weights(layer: Any, name: str) -> list[Any]:
    """A, B and, for DoRA, m of an adapter whose modules hold a ``weight``."""
    return list(map(weight_of, adapter_modules(layer, name)))


def weight_of(module: Any) -> Any:
    """``module.weight``."""
    weight = module._parameters.get("weight")
    return module.weight if weight is None else weight  # sharding replaces a parameter by a plain tensor
