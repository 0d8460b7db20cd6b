"""Computes norms once while no weight changes.

A layer on its own must check its weights' content to know that its norm is still valid. Each check and each
new norm then falls between two large products, when the caches hold nothing it needs. Code that controls the
whole forward pass computes all norms before it, one after the other, in about half the time, and checks none
again. An evaluation computes them once instead of once per token, and so does a call of ``generate``
(``generate.py``). On a GPU one launch computes those of all layers that its kernel takes.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from torch import nn

from doratune.engine.norm_cache import Adapter, fill
from doratune.peft.layer import EngineLayer


def engine_layers(model: nn.Module) -> list[EngineLayer]:
    """The layers of a model that are on the engine."""
    return [module for module in model.modules() if isinstance(module, EngineLayer)]


def dora_layers(model: nn.Module) -> list[EngineLayer]:
    """The layers of a model that are on the engine and have a DoRA adapter."""
    return [layer for layer in engine_layers(model) if any(layer.use_dora.values())]


@contextmanager
def hold_norms(
    model: nn.Module, *, base_unchanged: bool = False, layers: Sequence[EngineLayer] | None = None
) -> Iterator[None]:
    """Compute the norms of the active DoRA adapters now, and reuse them inside without checking.

    LoRA layers reuse what they have decided. Only this thread does; calls of other threads check as ever.

    Neither the weights nor the modules that hold them may change inside. Switching, scaling, merging and
    disabling adapters is safe: an adapter that becomes active inside gets its norm at its first call. So does
    one whose weights are sharded now: none is gathered for it. Inside another ``hold_norms`` it does nothing.
    A CUDA graph that is captured inside reads these norms, so it must not be replayed afterwards.

    Args:
        model: Any model; layers that are not on the engine are left alone.
        base_unchanged: The caller's promise that no base weight has changed since its layer was first called
            or held.
        layers: The model's ``engine_layers`` or ``dora_layers``, from a caller that holds them again and
            again: finding them takes longer than holding them. Layers that have left the engine since are
            passed over, and any that are missing check their norms in each call.
    """
    layers = [
        layer
        for layer in (engine_layers(model) if layers is None else layers)
        if isinstance(layer, EngineLayer) and not layer.norms.held
    ]
    held = [layer.norms for layer in layers]  # kept, since a layer returned to PEFT inside loses its own
    for norms in held:
        norms.hold(base_unchanged=base_unchanged)
    try:
        _compute(layers)
        yield
    finally:
        for norms in held:
            norms.let_go()


def _compute(layers: list[EngineLayer]) -> None:
    """Decide which adapter the engine computes in each layer, and compute the norms of those with DoRA."""
    dense: list[Adapter] = []
    for layer in layers:
        adapter = layer.decide()
        if adapter is None or not layer.use_dora.get(adapter, False) or not layer.engine_options.detach_norm:
            continue
        weights = layer.dense_weights(adapter)
        if weights is None:
            layer.adapter_norm(adapter)
        else:
            dense.append(Adapter(layer.norms, adapter, *weights, layer.scaling[adapter]))
    fill(dense)
