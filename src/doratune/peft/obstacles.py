"""Which of PEFT's layers and adapters the engine can compute, and why not the others."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from peft.tuners.lora.dora import DoraLinearLayer
from peft.tuners.lora.variants import DoraLinearVariant
from torch import Tensor, nn

FLOATING = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
_HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")


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
    modules = [(layer.lora_A[name], adapter), (layer.lora_B[name], adapter)]
    if layer.use_dora.get(name, False):
        modules.append((layer.lora_magnitude_vector[name], magnitude))
    if any(type(module) is not wanted for module, wanted in modules):
        return "adapter weights wrapped by another module"
    return hook_obstacle([layer.base_layer, *(module for module, _ in modules)])


def hook_obstacle(modules: Iterable[nn.Module]) -> str | None:
    """Whether a module must be called for something to happen."""
    for module in modules:
        own = module.__dict__  # looked at in every call: a module's own getattr takes five times as long
        if "forward" in own or any(own[hooks] for hooks in _HOOKS):
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
    if any(tensor.device != weight.device and not tensor.is_meta for tensor in adapter):
        return "adapter and base weight on different devices"
    return None


def adapter_weights(layer: Any, name: str) -> list[Tensor]:
    """A, B and, for DoRA, m of an adapter whose modules hold a ``weight``."""
    modules = [layer.lora_A[name], layer.lora_B[name]]
    if layer.use_dora.get(name, False):
        modules.append(layer.lora_magnitude_vector[name])
    return [module.weight for module in modules]
