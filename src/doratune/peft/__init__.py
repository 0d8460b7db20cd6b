"""PEFT models on the engine. Only this package and ``training/adapter.py`` know PEFT's internals.

``enable(model)`` swaps the class of each supported LoRA or DoRA layer; parameters, names, checkpoints,
merging and saving stay PEFT's. ``disable(model)`` swaps the classes back, and ``enable_automatically()``
enables each model as it is built. ``first_calls`` tells what became of a model's first forward pass.
``hold_norms`` reuses norms while no weight changes. ``load`` and ``adapter_file`` read saved adapters, and
``adapted`` tells which adapters a model has.
"""

from doratune.peft.adapted import (
    adapted_modules,
    adapter_of,
    adapter_parameters,
    has_lora,
    parameter_kind,
    shared_layers,
    uses_dora,
)
from doratune.peft.automatic import disable_automatically, enable_automatically
from doratune.peft.dora_norms import dora_norms
from doratune.peft.enable import EnableReport, disable, enable, left_to_peft
from doratune.peft.first_calls import LayerCalls, first_calls
from doratune.peft.hold_norms import hold_norms

__all__ = [
    "EnableReport",
    "LayerCalls",
    "adapted_modules",
    "adapter_of",
    "adapter_parameters",
    "disable",
    "disable_automatically",
    "dora_norms",
    "enable",
    "enable_automatically",
    "first_calls",
    "has_lora",
    "hold_norms",
    "left_to_peft",
    "parameter_kind",
    "shared_layers",
    "uses_dora",
]
