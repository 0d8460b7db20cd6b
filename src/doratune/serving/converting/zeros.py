"""LoRAs of zeros for modules that were not adapted, so that SGLang loads the others."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping

import torch
from torch import Tensor, nn

from doratune.errors import first_of
from doratune.peft.merge_layer import PREFIX
from doratune.records.adapter_folder import LORA_FACTORS
from doratune.serving.fused import lacking


def unadapted(model: nn.Module, layers: Iterable[str]) -> dict[str, tuple[int, int]]:
    """The linear layers that SGLang wants an adapter to have with those that it has.

    Args:
        model: The base model. What it does not have is not missing.
        layers: The names of the adapted layers.

    Returns:
        d_out and d_in of each, by its name.
    """
    modules: dict[str, set[str]] = defaultdict(set)
    for name in layers:
        parent, _, module = name.rpartition(".")
        modules[parent].add(module)
    found = {}
    for parent, names in modules.items():
        for module in sorted(lacking(names)):
            layer = getattr(model.get_submodule(parent), module, None)
            if isinstance(layer, nn.Linear):
                found[f"{parent}.{module}"] = (layer.out_features, layer.in_features)
    return found


def of_zeros(layers: Mapping[str, tuple[int, int]], rank: int) -> dict[str, Tensor]:
    """LoRAs of zeros, by their keys in PEFT's file.

    Args:
        layers: d_out and d_in of each layer, by its name.
        rank: The LoRAs' rank.
    """
    return {
        f"{PREFIX}{name}.{key}": torch.zeros(shape)
        for name, (d_out, d_in) in layers.items()
        for key, shape in zip(LORA_FACTORS, ((rank, d_in), (d_out, rank)), strict=True)
    }


def notes_on_zeros(layers: Iterable[str]) -> list[str]:
    """What is to be said of LoRAs of zeros, in sentences."""
    names = list(layers)
    if not names:
        return []
    kinds = ", ".join(sorted({name.rpartition(".")[2] for name in names}))
    return [
        f"{len(names)} layers that were not adapted ({kinds}) have a LoRA of zeros, which changes nothing: "
        f"SGLang computes them as one with adapted layers, and refuses those alone ({first_of(names)})"
    ]
