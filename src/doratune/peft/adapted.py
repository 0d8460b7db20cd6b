"""Which adapters a model has, for callers that do not know PEFT's inside."""

from __future__ import annotations

from typing import Any

from peft import PeftModel
from torch import nn

from doratune.peft._internals import BaseTunerLayer, adapter_weights


def adapted_modules(model: nn.Module) -> set[nn.Module]:
    """The layers of a model that have an adapter of any kind, and all modules in them."""
    layers = [layer for layer in model.modules() if isinstance(layer, BaseTunerLayer)]
    return {part for layer in layers for part in layer.modules()}


def adapter_of(layer: nn.Module, name: str = "default") -> dict[str, nn.Parameter]:
    """The parameters of a linear layer's adapter by their names in the equations: A, B and, for DoRA, m."""
    return dict(zip("ABm", adapter_weights(layer, name), strict=False))


def uses_dora(model: PeftModel) -> bool:
    """Whether one of a model's adapters is DoRA."""
    configs: dict[str, Any] = model.peft_config
    return any(config.use_dora for config in configs.values())


def adapter_parameters(model: PeftModel) -> int:
    """How many parameters a model's LoRA and DoRA adapters have."""
    return sum(one.numel() for name, one in model.named_parameters() if "lora_" in name)
