"""Which of PEFT's layers and adapters the engine can compute, and why not the others."""

from __future__ import annotations

import torch
from peft.tuners.lora import LoraLayer
from peft.tuners.lora.dora import DoraLinearLayer
from peft.tuners.lora.layer import Linear
from peft.tuners.lora.variants import DoraLinearVariant
from torch import nn

_FLOATING = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
_HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")


def dora_adapters(layer: LoraLayer) -> list[str]:
    """Names of the layer's DoRA adapters, of whatever kind the layer is."""
    return [name for name in layer.lora_magnitude_vector if layer.use_dora.get(name, False)]


def layer_obstacle(layer: LoraLayer) -> str | None:
    """Why the engine cannot compute any DoRA adapter of this layer; None if it can."""
    adapters = dora_adapters(layer)
    if not adapters:
        return "no DoRA adapter"
    if not isinstance(layer, Linear) or type(layer).forward is not Linear.forward:
        return "kind not yet supported"
    reasons = [adapter_obstacle(layer, name) for name in adapters]
    return None if None in reasons else reasons[0]


def adapter_obstacle(layer: Linear, name: str) -> str | None:
    """Why the engine cannot compute the DoRA adapter ``name`` of a linear layer; None if it can.

    The engine reads the weights without calling the modules that hold them. A module that is wrapped (FSDP),
    subclassed or hooked (accelerate's offloading, DeepSpeed ZeRO-3) must be called, so it stays with PEFT.
    """
    base, magnitude = layer.base_layer, layer.lora_magnitude_vector[name]
    lora_A, lora_B = layer.lora_A[name], layer.lora_B[name]
    if type(base) is not nn.Linear:
        return f"base layer {type(base).__name__} not yet supported"
    if layer.fan_in_fan_out:
        return "fan_in_fan_out not supported"
    if layer.lora_bias.get(name, False):
        return "lora_bias not supported"
    if type(layer.lora_variant.get(name)) is not DoraLinearVariant:
        return "variant of DoRA not supported"
    if (
        type(lora_A) is not nn.Linear
        or type(lora_B) is not nn.Linear
        or type(magnitude) is not DoraLinearLayer
    ):
        return "adapter weights wrapped by another module"
    if any(_has_hooks(module) for module in (base, lora_A, lora_B, magnitude)):
        return "hooks on the layer's parts (offloading or sharding)"
    return _weight_obstacle(base.weight, lora_A.weight, lora_B.weight, magnitude.weight)


def _weight_obstacle(weight: torch.Tensor, *adapter: torch.Tensor) -> str | None:
    if type(weight) not in (torch.Tensor, nn.Parameter) or weight.dtype not in _FLOATING:
        return f"base weight {type(weight).__name__} of {weight.dtype} not yet supported"
    if weight.requires_grad:
        return "base weight is being trained"
    if any(tensor.device != weight.device for tensor in adapter):
        return "adapter and base weight on different devices"
    return None


def _has_hooks(module: nn.Module) -> bool:
    return "forward" in vars(module) or any(getattr(module, hooks) for hooks in _HOOKS)
