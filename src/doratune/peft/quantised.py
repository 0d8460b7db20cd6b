"""PEFT's LoRA layers over quantised linear layers, computed through the base layer's own forward.

No optimizer step dequantises W: the norm's U = W Aᵀ is base(A) - b, in the base layer's own precision, and
‖W‖² is computed once. docs/engine/quantised.md says what that costs in accuracy.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from doratune.engine.dropout import dora_with_dropout
from doratune.engine.lora_update import add_update
from doratune.engine.magnitude import scale_by_magnitude
from doratune.engine.norm_cache import BaseWeight
from doratune.engine.weight_norm import row_norm_squared
from doratune.functional import FLOATING
from doratune.peft._internals import (
    LoraLayer,
    adapter_weights,
    dequantize_module_weight,
    is_bnb_4bit_available,
    is_bnb_available,
    is_torchao_available,
)
from doratune.peft.layer import EngineLayer
from doratune.peft.obstacles import device_obstacle, matrix_adapter_obstacle

COLUMNS = 512
"""Columns of W at a time, where they must be computed by the layer itself."""
CHECKED = 8
"""How many columns of a dequantised weight are compared with the layer's outputs."""
AGREEMENT = 0.05
"""How far they may differ, relative to the largest element: the layer computes in bfloat16 or with 8 bits."""


class QuantisedWeight(BaseWeight):
    """A weight whose products are computed by calling its layer.

    Args:
        base: The quantised layer, (..., d_in) -> (..., d_out).
    """

    def __init__(self, base: nn.Module) -> None:
        self._base: Any = base

    @property
    def tensors(self) -> tuple[Tensor, ...]:
        """The packed weight and its quantisation constants."""
        return tuple(_tensors(self._base.weight))

    def row_norm_squared(self) -> Tensor:
        """‖W‖² per row, (d_out,), float32, from a temporary dequantised copy.

        The copy may differ from the weight that the layer uses: bitsandbytes repacks a 4-bit weight when it
        is first evaluated on a CPU with AVX-512 BF16, and its dequantisation ignores that. So a few columns
        are compared with the layer's outputs for unit vectors. If they differ, all columns are computed that
        way.
        """
        W = dequantised(self._base)
        count = W.shape[1]
        some = torch.linspace(0, count - 1, min(CHECKED, count), device=W.device).long()
        expected = W[:, some].float()
        error = (self._columns(some) - expected).abs().amax()
        if error <= AGREEMENT * expected.abs().amax():
            return row_norm_squared(W)
        squared = torch.zeros(W.shape[0], device=W.device)
        for columns in torch.arange(count, device=W.device).split(COLUMNS):
            squared += self._columns(columns).square().sum(dim=1)
        return squared

    def _columns(self, columns: Tensor) -> Tensor:
        """Columns of W as the layer computes them, (d_out, n) for (n,), float32."""
        units = torch.zeros(len(columns), self._base.in_features, device=columns.device)
        units.scatter_(1, columns[:, None], 1)
        return self.apply(units.to(_compute_dtype(self._base))).T.float()

    def product(self, A: Tensor) -> Tensor:
        """W Aᵀ, (d_out, r), float32, with the layer's precision."""
        return self.apply(A.to(_compute_dtype(self._base))).T.float()

    def apply(self, x: Tensor) -> Tensor:
        """The layer's output without its bias, (..., d_out), in x's dtype."""
        bias = self._base.bias
        return self._base(x) if bias is None else self._base(x) - bias.to(x.dtype)


def dequantised(base: Any) -> Tensor:
    """W, (d_out, d_in), dequantised by the library that quantised it."""
    packed = base.weight
    weight: Any = dequantize_module_weight(base)
    base.weight = packed  # on a CPU PEFT replaces it by a copy, which for 8 bits lacks the scales
    return weight if type(weight) in (Tensor, nn.Parameter) else weight.dequantize()


class EngineQuantisedLinear(EngineLayer):
    """A mixin for PEFT's layers over quantised bases; see ``EngineLayer``."""

    @staticmethod
    def adapter_obstacle(layer: Any, name: str, *, entered: bool = False) -> str | None:
        """See ``EngineLayer``."""
        weight = getattr(layer.base_layer, "weight", None)
        if weight is None:
            return f"base layer {type(layer.base_layer).__name__} not supported"
        if weight.requires_grad:
            return "base weight is being trained"
        return matrix_adapter_obstacle(layer, name, entered=entered) or device_obstacle(
            weight, adapter_weights(layer, name)
        )

    def compute(self, x: Tensor, adapter: str) -> Tensor:
        """The layer's output, (..., d_out), for x (..., d_in); see ``EngineLayer``."""
        A: Any = self.lora_A[adapter].weight
        B: Any = self.lora_B[adapter].weight
        s, x_dropped = self.scaling[adapter], self.dropped(x, adapter)
        if not self.use_dora.get(adapter, False):
            return add_update(self.base_layer(x), x if x_dropped is None else x_dropped, A, B, s)
        base = QuantisedWeight(self.base_layer)
        m: Any = self.lora_magnitude_vector[adapter].weight
        norm = self.adapter_norm(adapter)
        g = self.held_scale(m, adapter)
        bias: Any = self.base_layer.bias
        inner_base: Any = None

        def recompute(x: Tensor, source: Tensor) -> Tensor:
            return add_update(base.apply(x), source, A, B, s)

        def scaled(x: Tensor, source: Tensor, with_bias: bool) -> Tensor:
            nonlocal inner_base
            inner_base = base.apply(x)
            z = add_update(inner_base, source, A, B, s)
            added = bias if with_bias else None
            return scale_by_magnitude(z, m, norm, added, g=g, remake=recompute, kept=(x, source))

        def difference(x: Tensor, _x_dropped: Tensor) -> Tensor:
            # Not the layer of x - x_dropped: an 8-bit layer rounds its inputs.
            return self.base_layer(x) - inner_base

        form = self.engine_options.dropout
        return dora_with_dropout(x, x_dropped, form, scaled=scaled, difference=difference)

    def adapter_norm(self, adapter: str) -> Tensor:
        """See ``EngineLayer``."""
        A: Any = self.lora_A[adapter].weight
        B: Any = self.lora_B[adapter].weight
        return self.norms.get(QuantisedWeight(self.base_layer), A, B, self.scaling[adapter], adapter=adapter)


def _compute_dtype(base: Any) -> torch.dtype:
    """The dtype of the layer's inputs in training, as far as it says; otherwise float32."""
    dtype = getattr(base, "compute_dtype", None) or base.weight.dtype
    return dtype if dtype in FLOATING else torch.float32


def _tensors(weight: Tensor) -> Iterator[Tensor]:
    """The tensors of a quantised weight, including its quantisation state."""
    yield weight
    states = [getattr(weight, "quant_state", None)]
    for state in states:
        for value in vars(state).values() if state is not None else ():
            if isinstance(value, Tensor):
                yield value
            elif hasattr(value, "absmax"):
                states.append(value)


# PEFT defines these classes only if their library is installed.
QUANTISED: dict[type[LoraLayer], type[EngineQuantisedLinear]] = {}

if is_bnb_available():
    from doratune.peft._internals import Linear8bitLt

    class EngineLinear8bitLt(EngineQuantisedLinear, Linear8bitLt):
        """For bitsandbytes' 8-bit layer, which rounds the activations too."""

        peft_class = Linear8bitLt

    QUANTISED[Linear8bitLt] = EngineLinear8bitLt

if is_bnb_4bit_available():
    from doratune.peft._internals import Linear4bit

    class EngineLinear4bit(EngineQuantisedLinear, Linear4bit):
        """For bitsandbytes' 4-bit layer."""

        peft_class = Linear4bit

    QUANTISED[Linear4bit] = EngineLinear4bit

if is_torchao_available():
    from doratune.peft._internals import TorchaoLoraLinear

    class EngineTorchaoLinear(EngineQuantisedLinear, TorchaoLoraLinear):
        """For torchao's int8 weights."""

        peft_class = TorchaoLoraLinear

    QUANTISED[TorchaoLoraLinear] = EngineTorchaoLinear
