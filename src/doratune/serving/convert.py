"""``doratune convert --rank``: the best LoRA of a rank, what it leaves out, and what that costs."""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from peft import LoraConfig
from torch import Tensor

from doratune.errors import InputError
from doratune.serving.adapted import AdaptedBase, AdaptedLayer
from doratune.serving.low_rank import Decomposition, decompose, decompose_factors, dora_change
from doratune.serving.lora_folder import PREFIX, carried, carried_note, lora_config, short_targets
from doratune.records.serving import LayerShare

logger = logging.getLogger(__name__)


class Conversion:
    """The LoRAs of an adapter, of any rank up to a largest one.

    Args:
        source: The adapter on its base.
        largest: The largest rank that will be asked for.

    Attributes:
        source: The adapter.
    """

    def __init__(self, source: AdaptedBase, largest: int) -> None:
        self.source = source
        self._kinds = {layer.name: layer.kind for layer in source.layers()}
        self._parts = {layer.name: _decomposed(layer, largest) for layer in source.layers()}

    def left_out(self, rank: int) -> float:
        """The share of ‖ΔW‖ that a LoRA of this rank leaves out, over all layers."""
        return _share([one.left_out(rank) for one in self._parts.values()], self._norm)

    def least(self, rank: int) -> float:
        """A lower bound on ``left_out`` for any LoRA of this rank."""
        return _share([one.least_left_out(rank) for one in self._parts.values()], self._norm)

    def layers(self, rank: int) -> list[LayerShare]:
        """The same for each layer."""
        return [
            LayerShare(
                layer=name,
                size=one.size,
                norm=one.norm,
                left_out=_share([one.left_out(rank)], one.norm),
                least=_share([one.least_left_out(rank)], one.norm),
            )
            for name, one in self._parts.items()
        ]

    def tensors(self, rank: int) -> dict[str, Tensor]:
        """The LoRA of this rank by the keys of PEFT's file, with the adapter's other tensors."""
        found = carried(self.source.tensors)
        for name, one in self._parts.items():
            A, B = one.factors(rank)
            embedding = self._kinds[name] == "embedding"
            keys = ("lora_embedding_A", "lora_embedding_B") if embedding else ("lora_A.weight", "lora_B.weight")
            found |= {f"{PREFIX}{name}.{key}": factor for key, factor in zip(keys, (A, B), strict=True)}
        return found

    @cached_property
    def _norm(self) -> float:
        return math.hypot(*(one.norm for one in self._parts.values()))


def _share(parts: Sequence[float], whole: float) -> float:
    return math.hypot(*parts) / whole if whole else 0.0
