"""The norms that DoRA's magnitudes are divided by, on the engine and on PEFT's own path alike."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from doratune.peft._internals import LoraLayer
from doratune.peft.enable import KINDS, layer_obstacle, peft_class
from doratune.peft.layer import EngineLayer, EngineOptions, adopt, release


def dora_norms(model: nn.Module) -> dict[str, Tensor]:
    """The norms of the active DoRA adapters, (d_out,) each, by their layers' names.

    Layers that the engine cannot compute are left out. A layer on PEFT's path has its norm as PEFT has it, in
    the type of its weight. No weight is gathered: a layer whose weights are sharded has the norm that
    ``hold_norms`` holds from its last call, and is left out elsewhere.
    """
    norms = {}
    for name, layer in model.named_modules():
        if not isinstance(layer, LoraLayer) or not any(layer.use_dora.values()):
            continue
        if isinstance(layer, EngineLayer):
            norm = _norm(layer)
        elif layer_obstacle(layer) is None:
            norm = _norm_on_loan(layer)
        else:
            continue
        if norm is not None:
            norms[name] = norm
    return norms


def _norm(layer: EngineLayer) -> Tensor | None:
    adapter = layer.adapter_on_engine()
    if adapter is None:
        held = (layer.norms.held_norm(one, layer.scaling[one]) for one in layer.active_on_layer())
        return next(held, None)
    return layer.adapter_norm(adapter) if layer.use_dora.get(adapter, False) else None


def _norm_on_loan(layer: Any) -> Tensor | None:
    """The norm of a layer of PEFT's, which is on the engine for as long as that takes."""
    adopt(layer, KINDS[peft_class(layer)], EngineOptions())
    try:
        norm = _norm(layer)
    finally:
        release(layer)
    W: Tensor = layer.get_base_layer().weight
    return norm.to(W.dtype) if norm is not None and W.is_floating_point() else norm
