"""The LoRAs of one rank or another that come closest to an adapter."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path

from doratune.errors import InputError, first_of
from doratune.finite import is_finite
from doratune.peft.adapter_file import read_adapter_tensors
from doratune.peft.merge_layer import INITIALISATIONS, PREFIX
from doratune.records.adapter_folder import EMBEDDING_FACTORS, LORA_FACTORS
from doratune.records.serving import LayerShare
from doratune.serving.adapted import AdaptedBase, AdaptedLayer
from doratune.serving.converting.lora_folder import (
    carried,
    lora_config,
    short_targets,
    source_notes,
    write_lora,
)
from doratune.serving.converting.low_rank import Decomposition, decompose, decompose_factors, dora_change
from doratune.serving.converting.zeros import notes_on_zeros, of_zeros, unadapted


class Conversion:
    """The LoRAs of an adapter, of any rank up to a largest one.

    Args:
        source: The adapter on its base.
        largest: The largest rank that will be asked for.

    Raises:
        InputError: A change of the weights is not finite.
    """

    def __init__(self, source: AdaptedBase, largest: int) -> None:
        self.source = source
        layers = [one for one in source.layers() if one.kind != "tokens"]
        self._embeddings = {one.name for one in layers if one.kind == "embedding"}
        self._parts = {one.name: _decomposed(one, largest, source) for one in layers}
        self._zeros = unadapted(source.base.model, self._parts)

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

    def notes(self, rank: int) -> list[str]:
        """What the LoRA of this rank has besides factors, in sentences."""
        notes = source_notes(self.source)
        if small := [name for name, one in self._parts.items() if one.size < rank]:
            notes.append(
                f"{len(small)} layers are smaller than rank {rank}; their LoRA is exact and filled up "
                f"with zeros ({first_of(small)})"
            )
        if rank > (held := max(one.rank for one in self.source.layers())) and not self.source.config.use_dora:
            notes.append(f"the adapter is a LoRA of rank {held}; the ranks above it are zeros")
        return notes + notes_on_zeros(self._zeros)

    def write(self, folder: Path, rank: int) -> None:
        """Write the LoRA of this rank as a PEFT adapter."""
        tensors = carried(read_adapter_tensors(self.source.adapter))
        for name, one in self._parts.items():
            embedding = name in self._embeddings
            keys = EMBEDDING_FACTORS if embedding else LORA_FACTORS
            for key, factor in zip(keys, one.factors(rank), strict=True):
                tensors[f"{PREFIX}{name}.{key}"] = factor
        tensors |= of_zeros(self._zeros, rank)
        base = self.source.base_record
        targets = short_targets(self.source.base.model, [*self._parts, *self._zeros])
        config = lora_config(self.source.config, rank=rank, base=base.name, targets=targets)
        write_lora(folder, config, tensors, source=self.source, base=base)

    @cached_property
    def _norm(self) -> float:
        return math.hypot(*(one.norm for one in self._parts.values()))


def _decomposed(layer: AdaptedLayer, largest: int, source: AdaptedBase) -> Decomposition:
    """Decompose a layer's ΔW against the base model's own weight."""
    changed = str(source.config.init_lora_weights).lower() in INITIALISATIONS  # the base, before training
    if layer.is_plain and not layer.is_dora and not changed:
        A, B, scaling = layer.factors()
        return decompose_factors(A, B, scaling)
    W = layer.weight()
    if layer.is_plain and layer.is_dora and not changed:
        A, B, scaling = layer.factors()
        gain = layer.gain(W)
        assert gain is not None
        change = dora_change(W.T if layer.is_transposed else W, A, B, scaling, gain)
    else:
        change = layer.merged(W).sub_(W)
        change = change.T if layer.is_transposed or layer.kind == "embedding" else change
    if not is_finite(change):
        raise InputError(
            "a change of the weights is not finite",
            where=str(source.adapter),
            got=layer.parameter,
            fix="its training diverged: take an earlier checkpoint, or train with a lower learning rate",
        )
    return decompose(change, largest)


def _share(parts: Sequence[float], whole: float) -> float:
    return math.hypot(*parts) / whole if whole else 0.0
