"""Puts PEFT models on the engine as they are built, without changes to the code that builds them."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any
from weakref import WeakKeyDictionary

from torch import nn

from doratune.peft._internals import BaseTuner, LoraLayer
from doratune.peft.enable import EnableReport, enable
from doratune.peft.first_calls import LayerCalls, counts_of
from doratune.peft.layer import EngineLayer, EngineOptions

_peft_inject_adapter: Callable[..., None] | None = None
"""PEFT's own method while it is replaced."""


def enable_automatically(
    tell: Callable[[EnableReport], object] | None = None,
    tell_calls: Callable[[LayerCalls], object] | None = None,
) -> None:
    """From now on, put a PEFT model on the engine whenever an adapter is injected into it.

    Every way to build a model with LoRA or DoRA layers ends in ``BaseTuner.inject_adapter``:
    ``get_peft_model``, ``PeftModel.from_pretrained``, ``add_adapter``, ``load_adapter``,
    ``add_weighted_adapter``, ``inject_adapter_in_model``, mixed models, and the adapter methods of
    transformers' models. So only that method is wrapped, and functions that other modules have already
    imported need no patch.

    Models without LoRA layers, and models built before, are left alone. A second call changes nothing.

    Args:
        tell: Called with a model's ``EnableReport``, and again when a later adapter changes it.
        tell_calls: Called after a model's first forward pass, with what became of its layers' calls.
    """
    global _peft_inject_adapter
    if _peft_inject_adapter is not None:
        return
    _peft_inject_adapter = inject_adapter = BaseTuner.inject_adapter
    told: WeakKeyDictionary[nn.Module, EnableReport] = WeakKeyDictionary()

    @functools.wraps(inject_adapter)
    def inject_and_enable(self: BaseTuner, model: nn.Module, *args: Any, **kwargs: Any) -> None:
        inject_adapter(self, model, *args, **kwargs)
        if not any(isinstance(module, LoraLayer) for module in model.modules()):
            return  # another PEFT method
        # Options that the script has set for a model apply to its later adapters too.
        chosen = (module.engine_options for module in model.modules() if isinstance(module, EngineLayer))
        options = next(chosen, EngineOptions())
        report = enable(model, dropout=options.dropout, detach_norm=options.detach_norm)
        counts = counts_of(model)
        if tell_calls is not None and counts is not None and tell_calls not in counts.listeners:
            counts.listeners.append(tell_calls)
        if tell is not None and told.get(model) != report:
            told[model] = report
            tell(report)

    BaseTuner.inject_adapter = inject_and_enable


def disable_automatically() -> None:
    """From now on, leave new models to PEFT; models on the engine stay there."""
    global _peft_inject_adapter
    if _peft_inject_adapter is not None:
        BaseTuner.inject_adapter = _peft_inject_adapter
        _peft_inject_adapter = None
