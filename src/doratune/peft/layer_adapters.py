"""Reads a saved adapter layer by layer, for computations that need only A, B and m."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from peft import PeftModel
from torch import Tensor, nn

from doratune.errors import InputError
from doratune.peft._internals import BaseTunerLayer, DoraLinearVariant, Linear
from doratune.peft.adapter_file import read_adapter_tensors, read_lora_config
from doratune.peft.load import fill_adapter, fitting

INITIALISATIONS = ("true", "false", "gaussian", "eva", "orthogonal", "mica")
"""PEFT's initialisations that leave W unchanged."""
PARTS = ("lora_A.weight", "lora_B.weight", "lora_magnitude_vector", "lora_magnitude_vector.weight")
"""Keys of A, B and m in PEFT's file; some versions wrote m under the last one."""


@dataclass(frozen=True)
class LayerAdapter:
    """The adapter of one linear layer.

    Attributes:
        scaling: s.
        A: (r, d_in).
        B: (d_out, r).
        m: DoRA's magnitude, (d_out,); None for LoRA.
    """

    scaling: float
    A: Tensor
    B: Tensor
    m: Tensor | None

    def update(self, part: slice) -> Tensor:
        """Some rows of s·B·A, (n, d_in), in float64."""
        return self.scaling * (self.B[part].double() @ self.A.double())

    def magnitude(self, part: slice) -> Tensor | None:
        """Some elements of m, (n,), in float64; None for LoRA."""
        return None if self.m is None else self.m[part].double()


@dataclass(frozen=True)
class LayerAdapters:
    """An adapter's layers.

    Attributes:
        linear: Adapters of linear layers by their names in the base model, in the model's order.
        others: Names of layers with an adapter of another kind, such as embeddings.
    """

    linear: dict[str, LayerAdapter]
    others: list[str]


def read_layer_adapters(skeleton: nn.Module, folder: Path) -> LayerAdapters:
    """Read an adapter without the base model's weights.

    Args:
        skeleton: The base model on the meta device; PEFT's layers are put into it.
        folder: The adapter, as PEFT saves it.

    Raises:
        InputError: The adapter cannot be read, its keys do not match the model's, or its initialisation had
            changed the base it was trained on.
    """
    config = copy.copy(read_lora_config(folder))
    if str(config.init_lora_weights).lower() not in INITIALISATIONS or config.kasa_config:
        raise InputError(
            "the adapter's initialisation changed the base it was trained on",
            where=str(folder),
            got="kasa_config" if config.kasa_config else f"init_lora_weights {config.init_lora_weights}",
            expected=f"one of {', '.join(INITIALISATIONS)}",
        )
    config.init_lora_weights = True  # others compute from weights, which are missing here
    with fitting(folder):
        model = PeftModel(skeleton, config, low_cpu_mem_usage=True)  # pyright: ignore[reportArgumentType]
    tensors = read_adapter_tensors(folder)
    fill_adapter(model, folder, tensors, in_place=False)
    linear, others = {}, []
    for name, module in model.named_modules():
        if not isinstance(module, BaseTunerLayer):
            continue
        layer: Any = module
        name = name.removeprefix("base_model.model.")
        variant = layer.lora_variant.get("default") if isinstance(layer, Linear) else layer
        if (variant is not None and type(variant) is not DoraLinearVariant) or layer.fan_in_fan_out:
            others.append(name)
            continue
        parts = [tensors.get(f"base_model.model.{name}.{part}") for part in PARTS]
        A, B, m = parts[0], parts[1], parts[2] if parts[2] is not None else parts[3]
        assert A is not None and B is not None
        linear[name] = LayerAdapter(layer.scaling["default"], A, B, m)
    return LayerAdapters(linear, others)
