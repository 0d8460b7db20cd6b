"""Merging one PEFT layer whose base weight is given to it for as long as that takes."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Literal

import torch
from peft import LoraConfig
from torch import Tensor, nn

from doratune.engine.weight_norm import over_norm
from doratune.peft._internals import (
    AuxiliaryTrainingWrapper,
    BaseTunerLayer,
    Conv1d,
    Conv2d,
    Conv3d,
    DoraEmbeddingVariant,
    DoraLinearVariant,
    Embedding,
    Linear,
    TrainableTokensLayer,
)

Kind = Literal["linear", "embedding", "conv", "tokens"]
KINDS: dict[type[BaseTunerLayer], Kind] = {
    Linear: "linear",
    Embedding: "embedding",
    Conv1d: "conv",
    Conv2d: "conv",
    Conv3d: "conv",
    TrainableTokensLayer: "tokens",
}
INITIALISATIONS = ("pissa", "olora", "loftq")
"""PEFT's initialisations that change the base weight by a computation that can be repeated."""
PART = 1 << 21
"""The most elements of a weight that are merged at a time."""
PREFIX = "base_model.model."
"""Of a module's name in a PEFT model, before its name in the base."""


def tuner_layers(model: nn.Module) -> Iterator[tuple[str, Any]]:
    """A PEFT model's layers with an adapter, by their names in the base model."""
    for name, module in model.named_modules():
        if isinstance(module, BaseTunerLayer):
            yield base_name(name), module


def base_name(name: str) -> str:
    """The name in the base model of a module or parameter of a PEFT model."""
    parts = name.removeprefix(PREFIX).split(".")
    kept: list[str] = []
    for part, before in zip(parts, ["", *parts], strict=False):
        # The adapter's name follows modules_to_save.
        if part in INSIDE or before == "modules_to_save":
            continue
        kept.append(part)
    return ".".join(kept)


INSIDE = ("base_layer", "original_module", "modules_to_save", "token_adapter")
"""Names that PEFT's wrappers put into a parameter's name."""


def whole_modules(model: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """The modules that the adapter brings whole (``modules_to_save``), by their names in the base model."""
    for name, module in model.named_modules():
        if isinstance(module, AuxiliaryTrainingWrapper) and hasattr(module, "modules_to_save"):
            wrapper: Any = module
            yield base_name(name), wrapper.modules_to_save[wrapper.active_adapters[0]]


def base_parameters(model: nn.Module) -> Iterator[tuple[str, nn.Parameter]]:
    """The base model's own parameters in a PEFT model, by their names in the base model."""
    for name, parameter in model.named_parameters():
        if not any(part in name for part in (".lora_", ".trainable_tokens_", ".modules_to_save.")):
            yield base_name(name), parameter


def to_float32(model: nn.Module) -> None:
    """Hold the parameters of LoRA, DoRA and single tokens in float32."""
    for name, parameter in model.named_parameters():
        if ".lora_" in name or ".trainable_tokens_" in name:
            parameter.data = parameter.data.float()


def is_wrapper(module: nn.Module) -> bool:
    """Whether PEFT has replaced a module of the base with a wrapper."""
    return isinstance(module, BaseTunerLayer | AuxiliaryTrainingWrapper)


def layer_kind(layer: Any) -> Kind | None:
    """What a layer adapts; None for one whose base is not a single weight, such as fused experts."""
    return next((kind for one, kind in KINDS.items() if isinstance(layer, one)), None)


def rank(layer: Any) -> int:
    """The adapter's rank."""
    return layer.r["default"]


def is_dora(layer: Any) -> bool:
    """Whether the adapter has magnitudes."""
    return bool(layer.use_dora.get("default"))


def is_transposed(layer: Any) -> bool:
    """Whether a linear layer's weight is stored as (d_in, d_out)."""
    return bool(layer.fan_in_fan_out)


def is_plain(layer: Any) -> bool:
    """Whether a linear layer is LoRA or DoRA as in the papers, without a further variant."""
    return isinstance(layer, Linear) and _plain_or_dora(layer)


def initialised(layer: Any, W: Tensor, config: LoraConfig, dtype: torch.dtype) -> Tensor:
    """The base weight that the adapter was trained on: ``W`` as its initialisation changed it.

    The result is float32 where it did, and otherwise ``W``.

    Args:
        layer: PEFT's layer.
        W: The base model's weight, as the layer stores it.
        config: The adapter's configuration as it was trained.
        dtype: The type of the base in training, to which the change was rounded.
    """
    kind = str(config.init_lora_weights).lower()
    if kind not in INITIALISATIONS or layer_kind(layer) == "tokens":
        return W
    adapter = [one for one in (layer.lora_A, layer.lora_B) if "default" in one]
    kept = [one["default"].weight.data for one in adapter]
    with _holding(layer, W.to(dtype, copy=True)) as base, torch.no_grad():
        if kind == "pissa":
            layer.pissa_init("default", "pissa")
        elif kind == "olora":
            layer.olora_init("default")
        else:
            layer.loftq_init("default", config)
        for one, before in zip(adapter, kept, strict=True):
            one["default"].weight.data = before
        return base.weight.data.float()


def merged_parts(layer: Any, W: Tensor) -> Iterator[tuple[tuple[slice, ...], Tensor]]:
    """The weight with the adapter merged into it, some outputs at a time, by PEFT's own ``merge``.

    The outputs of a linear layer or an embedding do not depend on each other. Only a part is held in float32,
    with PEFT's temporary copies of it.

    Args:
        layer: PEFT's layer.
        W: The weight that the adapter was trained on, of any type, as the layer stores it; left as it is.

    Yields:
        Where the part is in the weight, and the part, float32.
    """
    kind = layer_kind(layer)
    if kind not in ("linear", "embedding") or not _plain_or_dora(layer):
        yield (slice(None),), _merged(layer, W)
        return
    by_column = kind == "embedding" or is_transposed(layer)
    outputs = W.shape[1] if by_column else W.shape[0]
    step = max(1, PART * outputs // W.numel())
    whole = [(one, one.data) for one in _of_outputs(layer, kind)]
    for start in range(0, outputs, step):
        part = slice(start, start + step)
        place = (slice(None), part) if by_column else (part,)
        try:
            for one, values in whole:
                one.data = values[part]
            result = _merged(layer, W[place])
        finally:
            for one, values in whole:
                one.data = values
        yield place, result


def _of_outputs(layer: Any, kind: Kind) -> list[nn.Parameter]:
    """The parameters that have a row for each output: B and, for DoRA, m."""
    B = layer.lora_B["default"].weight if kind == "linear" else layer.lora_embedding_B["default"]
    return [B, layer.lora_magnitude_vector["default"].weight] if is_dora(layer) else [B]


def _plain_or_dora(layer: Any) -> bool:
    variant = layer.lora_variant.get("default")
    return variant is None or type(variant) in (DoraLinearVariant, DoraEmbeddingVariant)


def _merged(layer: Any, W: Tensor) -> Tensor:
    """A copy of ``W``, float32, with the adapter merged into it."""
    with _holding(layer, W.to(torch.float32, copy=True)) as base, torch.no_grad():
        try:
            layer.merge()
            return base.weight.data
        finally:
            layer.merged_adapters.clear()
            getattr(layer, "_caches", {}).clear()


def merged_bias(layer: Any, bias: Tensor) -> Tensor:
    """The base's bias with that of the adapter's B (PEFT's ``lora_bias``)."""
    with torch.no_grad():
        return bias + layer.lora_B["default"].bias.float() * layer.scaling["default"]


def has_bias(layer: Any) -> bool:
    """Whether the adapter's B has a bias."""
    return layer_kind(layer) != "tokens" and bool(layer.lora_bias.get("default"))


def factors(layer: Any) -> tuple[Tensor, Tensor, float]:
    """A (r, d_in) and B (d_out, r), float32, and s of a linear layer."""
    A, B = layer.lora_A["default"].weight, layer.lora_B["default"].weight
    return A.detach().float(), B.detach().float(), layer.scaling["default"]


def gain(layer: Any, W: Tensor) -> Tensor | None:
    """G = m / ‖W + s·B·A‖ of a linear layer, (d_out,), float32; None for LoRA.

    Args:
        layer: PEFT's layer.
        W: The weight that the adapter was trained on, float32, as the layer stores it.
    """
    if not is_dora(layer):
        return None
    A, B, s = factors(layer)
    own = W.T if layer.fan_in_fan_out else W
    with torch.no_grad():
        m: Tensor = layer.lora_magnitude_vector["default"].weight
        return over_norm(m.detach().float(), torch.linalg.vector_norm(torch.addmm(own, B, A, alpha=s), dim=1))


@contextmanager
def _holding(layer: Any, W: Tensor) -> Iterator[Any]:
    """The layer's base with this weight."""
    base = layer.get_base_layer()
    own, own_bias = base.weight, getattr(base, "bias", None)
    base.weight = nn.Parameter(W, requires_grad=False)
    if own_bias is not None and has_bias(layer):  # PEFT adds to it too
        base.bias = nn.Parameter(torch.zeros(own_bias.shape), requires_grad=False)
    try:
        yield base
    finally:
        base.weight = own
        if own_bias is not None:
            base.bias = own_bias
