"""Puts a PEFT model on the engine, and takes it off again."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from torch import nn

from doratune.errors import InputError
from doratune.functional import DropoutForm, check_dropout_form
from doratune.peft._internals import (
    Conv1d,
    Conv2d,
    Conv3d,
    Embedding,
    Linear,
    LoraLayer,
    class_below_fsdp,
    replaces_forward,
)
from doratune.peft.conv import EngineConv1d, EngineConv2d, EngineConv3d
from doratune.peft.embedding import EngineEmbedding
from doratune.peft.first_calls import count_first_calls
from doratune.peft.generate import generate_as_before, hold_in_generate
from doratune.peft.layer import EngineLayer, EngineOptions, adopt, release
from doratune.peft.linear import EngineLinear
from doratune.peft.obstacles import IN_UNITS, WEIGHTS_SHARDED
from doratune.peft.quantised import QUANTISED
from doratune.peft.training_watch import warn_of_rounded_magnitudes, watch

_log = logging.getLogger(__name__)

KINDS: dict[type[LoraLayer], type[EngineLayer]] = {
    Linear: EngineLinear,
    Embedding: EngineEmbedding,
    Conv1d: EngineConv1d,
    Conv2d: EngineConv2d,
    Conv3d: EngineConv3d,
    **QUANTISED,
}
"""The engine's class for each of PEFT's classes, by exact type."""


@dataclass(frozen=True)
class EnableReport:
    """How many LoRA layers are on the engine, how many are not, and why, as far as the model shows it now.

    Sharding and offloading change what a call finds; ``first_calls`` tells what became of the calls.

    Args:
        taken: Layers on the engine, by the name of PEFT's layer class.
        left: Layers on PEFT's own path, by the name of PEFT's layer class and the reason.
    """

    taken: Mapping[str, int]
    left: Mapping[tuple[str, str], int]

    def __str__(self) -> str:
        lines = [f"{_layers(count, kind)} on the engine" for kind, count in self.taken.items()]
        lines += [f"{_layers(count, kind)} on PEFT's path: {why}" for (kind, why), count in self.left.items()]
        return "\n".join(lines)


def enable(model: nn.Module, *, dropout: DropoutForm = "peft", detach_norm: bool = True) -> EnableReport:
    """Compute the LoRA and DoRA layers of a PEFT model with the engine, in place.

    Parameters, their names, checkpoints, merging and saving stay PEFT's. The engine also computes adapters
    that are added later to a layer on the engine; a layer that gets its first adapter later needs another
    call. Repeated calls change only the options.

    Inside a call of the model's ``generate`` no weight may change: DoRA's norms are computed once per call.

    A warning is logged if a magnitude is trained in bfloat16 or float16, and once if the model is in training
    mode and the first steps of an optimizer leave every adapter unchanged.

    Args:
        model: A model with LoRA or DoRA adapters, from ``get_peft_model``, ``PeftModel.from_pretrained`` or
            PEFT's injection into a plain model.
        dropout: What DoRA's dropout acts on. ``"peft"``: on everything but the frozen layer's own output, as
            in PEFT. ``"adapter"``: on the adapter only, which saves a product with the base weight. See
            ``doratune.functional.dora_linear``.
        detach_norm: Treat DoRA's norm as a constant of the backward pass (arXiv 2402.09353, section 4.3), as
            PEFT does. Otherwise every call computes it, and only dense linear layers are supported.

    Returns:
        How many layers of each kind are on the engine, and why the others are not; also logged. After the
        model's first forward pass another line is logged: how many layers ran on the engine in it.

    Raises:
        InputError: The model has no LoRA layer, ``dropout`` is not one of the two forms, or the engine cannot
            compute a DoRA layer although the options differ from PEFT's. Nothing is changed then.
    """
    check_dropout_form(dropout, where="doratune.enable")
    layers = [module for module in model.modules() if isinstance(module, LoraLayer)]
    if not layers:
        raise InputError(
            "the model has no PEFT LoRA or DoRA layer",
            where="doratune.enable",
            got=type(model).__name__,
            fix="first call get_peft_model with a LoraConfig, or PeftModel.from_pretrained",
        )
    options = EngineOptions(dropout=dropout, detach_norm=detach_norm)
    _require_options(layers, options)
    taken: Counter[str] = Counter()
    left: Counter[tuple[str, str]] = Counter()
    for layer in layers:
        kind, obstacle = peft_class(layer), layer_obstacle(layer)
        if obstacle is not None:
            left[kind.__name__, obstacle] += 1
            continue
        if isinstance(layer, EngineLayer):
            layer.engine_options = options
        else:
            adopt(layer, KINDS[kind], options)
        taken[kind.__name__] += 1
    report = EnableReport(taken=dict(taken), left=dict(left))
    count_first_calls([layer for layer in layers if isinstance(layer, EngineLayer)], report.left)
    if taken:
        hold_in_generate(model)
    warn_of_rounded_magnitudes(model)
    watch(model)
    for line in str(report).splitlines():
        _log.info("doratune: %s", line)
    return report


def disable(model: nn.Module) -> int:
    """Return every layer of ``model`` to PEFT, in place; it may have none on the engine.

    Args:
        model: Any model.

    Returns:
        How many layers were on the engine.

    Raises:
        AttributeError: ``model`` is not a ``torch.nn.Module``.
    """
    layers = [module for module in model.modules() if isinstance(module, EngineLayer)]
    for layer in layers:
        release(layer)
    generate_as_before(model)
    _log.info("doratune: %d layers back on PEFT's path", len(layers))
    return len(layers)


def left_to_peft(model: nn.Module) -> dict[str, int]:
    """How many LoRA and DoRA layers the engine cannot compute, by reason; empty if any layer is on it."""
    layers = [module for module in model.modules() if isinstance(module, LoraLayer)]
    if any(isinstance(layer, EngineLayer) for layer in layers):
        return {}
    return dict(Counter(reason for layer in layers if (reason := layer_obstacle(layer)) is not None))


def _require_options(layers: Sequence[LoraLayer], options: EngineOptions) -> None:
    """Raise if PEFT's path would silently ignore the options for a layer."""
    if options == EngineOptions():
        return
    for layer in layers:
        if not any(layer.use_dora.get(name, False) for name in layer.scaling):
            continue
        kind, obstacle = peft_class(layer), layer_obstacle(layer)
        if obstacle is None and not (options.detach_norm or KINDS[kind].supports_attached_norm):
            obstacle = "the norm is always detached there"
        if obstacle is not None:
            raise InputError(
                "a DoRA layer does not support dropout or detach_norm other than PEFT's",
                where="doratune.enable",
                got=f"{kind.__name__} layer: {obstacle}",
                expected="layers that the engine computes",
                fix="leave that layer out of target_modules, or keep the option's default",
            )


def peft_class(layer: LoraLayer) -> type:
    """The class that PEFT gave the layer."""
    return layer.peft_class if isinstance(layer, EngineLayer) else class_below_fsdp(layer)


def layer_obstacle(layer: LoraLayer) -> str | None:
    """Why the engine cannot compute any adapter of this layer; None if it can or does.

    A layer whose weights are sharded outside the forward pass counts as one that the engine can compute,
    since only a call can tell.
    """
    if isinstance(layer, EngineLayer):
        return None
    engine_class = KINDS.get(peft_class(layer))
    if engine_class is None:
        return "kind not supported"
    if replaces_forward(layer):
        return "other code has replaced its forward pass"
    reasons = [engine_class.adapter_obstacle(layer, name) for name in layer.scaling]
    if not reasons:
        return "no adapter"
    return None if not {None, WEIGHTS_SHARDED, IN_UNITS}.isdisjoint(reasons) else reasons[0]


def _layers(count: int, kind: str) -> str:
    return f"{count} {kind} {'layer' if count == 1 else 'layers'}"
