"""Norms computed once for as long as nobody changes a weight.

A layer that is called by itself has to look at its weights' content to know that its norm is still true, and
every look and every new norm comes between two large products, when nothing that it needs is in the caches.
Where one piece of code owns the whole forward pass, all norms are computed before it, one after the other, in
about half the time, and none is looked at again; an evaluation computes them once, not once per token.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn

from doratune.peft.layer import EngineLayer


@contextmanager
def hold_norms(model: nn.Module, *, base_unchanged: bool = False) -> Iterator[None]:
    """Compute the norms of the active DoRA adapters now, and take them as they are inside.

    Weights must not change inside, nor the modules that hold them. Switching, scaling, merging
    and disabling adapters is safe: an adapter that becomes active inside is looked at, and has its norm
    computed, at its first call. Inside another ``hold_norms`` it does nothing.

    Args:
        model: Any model; layers that are not on the engine are left alone.
        base_unchanged: Promises that no base weight has changed since an earlier ``hold_norms`` of this model
            or call of its layers, if there was one.
    """
    layers = [
        module for module in model.modules() if isinstance(module, EngineLayer) and not module.norms.held
    ]
    for layer in layers:
        layer.norms.hold(base_unchanged=base_unchanged)
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
        for layer in layers:
            layer.norms.let_go()
