"""Tells which adapters a model has, for callers that do not know PEFT's internals."""

from __future__ import annotations

import re
from collections import Counter
from typing import Any

from peft import PeftModel
from torch import nn

from doratune.peft._internals import BaseTunerLayer, LoraLayer, adapter_weights


def adapted_modules(model: nn.Module) -> set[nn.Module]:
    """The layers of a model that have an adapter of any PEFT method, and all modules in them."""
    layers = [layer for layer in model.modules() if isinstance(layer, BaseTunerLayer)]
    return {part for layer in layers for part in layer.modules()}


def shared_layers(model: nn.Module) -> list[str]:
    """Base-model names of adapted layers that share a weight with another module, as tied embeddings do."""
    users = Counter(id(parameter) for _, parameter in model.named_parameters(remove_duplicate=False))
    return [
        name.removeprefix("base_model.model.")
        for name, layer in model.named_modules()
        if isinstance(layer, BaseTunerLayer)
        and any(users[id(one)] > 1 for one in layer.get_base_layer().parameters(recurse=False))
    ]


def adapter_of(layer: nn.Module, name: str = "default") -> dict[str, nn.Parameter]:
    """The parameters of a linear layer's adapter by their names in the equations: A, B and, for DoRA, m."""
    return dict(zip("ABm", adapter_weights(layer, name), strict=False))


def parameter_kind(name: str) -> str:
    """The symbol in the equations of a trained parameter with this name: A, B, m, or W of the base.

    For an adapter that is not LoRA or DoRA, PEFT's name, such as ``vera_lambda_b``.
    """
    kinds = {"lora_magnitude_vector": "m", "lora_A": "A", "lora_B": "B"}
    kinds.update(lora_embedding_A="A", lora_embedding_B="B")
    own = re.search(r"\.(\w+)\.default(\.\w+)?$", name)
    return next((kind for part, kind in kinds.items() if f".{part}" in name), own[1] if own else "W")


def has_lora(model: nn.Module) -> bool:
    """Whether a model has a LoRA or DoRA adapter."""
    return any(isinstance(module, LoraLayer) for module in model.modules())


def uses_dora(model: PeftModel) -> bool:
    """Whether one of a model's adapters is DoRA."""
    configs: dict[str, Any] = model.peft_config
    return any(getattr(config, "use_dora", False) for config in configs.values())


def adapter_parameters(model: PeftModel) -> int:
    """The number of parameters in a model's adapters."""
    tuner: Any = model.base_model
    return sum(one.numel() for name, one in model.named_parameters() if f".{tuner.prefix}" in name)
