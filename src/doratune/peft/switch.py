"""Putting a PEFT model on the engine, and taking it off."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Sequence

from peft.tuners.lora import LoraLayer
from peft.tuners.lora.layer import Linear
from torch import nn

from doratune.errors import InputError
from doratune.peft.linear import EngineLinear, adopt, release
from doratune.peft.report import EnableReport
from doratune.peft.support import dora_adapters, layer_obstacle

_log = logging.getLogger(__name__)


def enable(model: nn.Module) -> EnableReport:
    """Compute the DoRA layers of a PEFT model with the engine, in place.

    Parameters, their names, checkpoints, merging and saving stay PEFT's own. An adapter added later to a
    layer that was taken is computed by the engine too; a layer that gets its first DoRA adapter later needs
    another call. Calling it again changes nothing.

    The norm of each base weight is kept and follows every change that PyTorch or PEFT records. A base weight
    that is written through ``weight.data`` by other code afterwards needs ``disable`` and ``enable``.

    Args:
        model: A model with at least one DoRA adapter, from ``get_peft_model``, from
            ``PeftModel.from_pretrained`` or from PEFT's injection into a plain model.

    Returns:
        How many layers of which kind are on the engine, and why the others are not; also logged.

    Raises:
        InputError: The model has no LoRA layer, or none with a DoRA adapter.
    """
    layers = [module for module in model.modules() if isinstance(module, LoraLayer)]
    _require_dora(model, layers)
    taken: Counter[str] = Counter()
    left: Counter[tuple[str, str]] = Counter()
    for layer in layers:
        if isinstance(layer, EngineLinear):
            taken[Linear.__name__] += 1
            continue
        obstacle = layer_obstacle(layer)
        if obstacle is None:
            taken[type(layer).__name__] += 1
            adopt(layer)
        else:
            left[type(layer).__name__, obstacle] += 1
    report = EnableReport(taken=dict(taken), left=dict(left))
    for line in str(report).splitlines():
        _log.info("doratune: %s", line)
    return report


def disable(model: nn.Module) -> int:
    """Give every layer of ``model`` back to PEFT, in place; nothing to do is not an error.

    Args:
        model: Any model.

    Returns:
        How many layers were on the engine.

    Raises:
        AttributeError: ``model`` is not a ``torch.nn.Module``.
    """
    layers = [module for module in model.modules() if isinstance(module, EngineLinear)]
    for layer in layers:
        release(layer)
    _log.info("doratune: %d layers back on PEFT's path", len(layers))
    return len(layers)


def _require_dora(model: nn.Module, layers: Sequence[LoraLayer]) -> None:
    if not layers:
        raise InputError(
            "the model has no PEFT LoRA or DoRA layer",
            where="doratune.enable",
            got=type(model).__name__,
            fix="first call get_peft_model with LoraConfig(use_dora=True), or PeftModel.from_pretrained",
        )
    if not any(dora_adapters(layer) for layer in layers):
        raise InputError(
            "the model has no DoRA adapter",
            where="doratune.enable",
            got=f"{len(layers)} LoRA layers, none with use_dora",
            fix="set use_dora=True in the LoraConfig",
        )
