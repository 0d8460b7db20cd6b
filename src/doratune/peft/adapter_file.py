"""A LoRA or DoRA adapter's file, read without its model."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from pathlib import Path

from peft import LoraConfig
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from doratune.errors import InputError

WEIGHTS = "adapter_model.safetensors"  # as PEFT writes it
KEY = re.compile(r"base_model\.model\.(?P<layer>.+)\.lora_(?P<part>A|B|magnitude_vector)(\.weight)?")


@dataclass(frozen=True)
class LayerAdapter:
    """The adapter of one linear layer.

    Attributes:
        scaling: s.
        A: (r, d_in).
        B: (d_out, r).
        m: DoRA's magnitudes, (d_out,); None for LoRA.
    """

    scaling: float
    A: Tensor
    B: Tensor
    m: Tensor | None

    def update(self, part: slice) -> Tensor:
        """Some rows of s·B·A, in float64."""
        return self.scaling * (self.B[part].double() @ self.A.double())

    def magnitude(self, part: slice) -> Tensor | None:
        """Some of the magnitudes, in float64."""
        return None if self.m is None else self.m[part].double()


def read_adapter(folder: Path) -> dict[str, LayerAdapter]:
    """The adapters of all layers by their names in the base model, in the file's order.

    Args:
        folder: A PEFT adapter of linear layers, as ``doratune train`` writes it.

    Raises:
        InputError: If the folder holds none, or one of another kind.
    """
    path = folder / WEIGHTS
    try:
        config = LoraConfig.from_pretrained(str(folder))
        tensors = load_file(path)
    except (OSError, ValueError, SafetensorError) as error:
        raise InputError("the adapter cannot be read", where=str(folder), got=str(error)) from error
    assert isinstance(config, LoraConfig)
    layers: dict[str, dict[str, Tensor]] = {}
    for key, tensor in tensors.items():
        match = KEY.fullmatch(key)
        if match is None:
            raise InputError(
                "the adapter holds more than LoRA or DoRA of linear layers", where=str(path), got=key
            )
        layers.setdefault(match["layer"], {})[match["part"]] = tensor
    scaling = config.lora_alpha / (math.sqrt(config.r) if config.use_rslora else config.r)
    return {
        layer: LayerAdapter(scaling, parts["A"], parts["B"], parts.get("magnitude_vector"))
        for layer, parts in layers.items()
    }
