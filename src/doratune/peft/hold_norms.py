"""Computes norms once while no weight changes.

A layer on its own must check its weights' content to know that its norm is still valid. Each check and each
new norm then falls between two large products, when the caches hold nothing it needs. Code that controls the
whole forward pass computes all norms before it, one after the other, in about half the time, and checks none
again. An evaluation computes them once instead of once per token.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn

from doratune.peft.layer import EngineLayer


@contextmanager
def hold_norms(model: nn.Module, *, base_unchanged: bool = False) -> Iterator[None]:
    """Compute the norms of the active DoRA adapters now, and reuse them inside without checking.

    Neither the weights nor the modules that hold them may change inside. Switching, scaling, merging and
    disabling adapters is safe: an adapter that becomes active inside gets its norm at its first call. So does
    one whose weights are sharded now: none is gathered for it. Inside another ``hold_norms`` it does nothing.

    Args:
        model: Any model; layers that are not on the engine are left alone.
        base_unchanged: The caller's promise that no base weight has changed since its layer was first called
            or held.
    """
    layers = [
        module for module in model.modules() if isinstance(module, EngineLayer) and not module.norms.held
    ]
    held = [layer.norms for layer in layers]  # kept, since a layer returned to PEFT inside loses its own
    for norms in held:
        norms.hold(base_unchanged=base_unchanged)
    try:
        for layer in layers:
            adapter = layer.adapter_on_engine()
            if (
                adapter is not None
                and layer.use_dora.get(adapter, False)
                and layer.engine_options.detach_norm
            ):
                layer.adapter_norm(adapter)
        yield
    finally:
        for norms in held:
            norms.let_go()
