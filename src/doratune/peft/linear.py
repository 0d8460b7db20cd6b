"""PEFT's LoRA linear layer computed by the engine."""

from __future__ import annotations

from typing import Any

import torch
from peft.tuners.lora.layer import Linear
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from doratune.engine.norm_cache import dense_norm
from doratune.functional import dora_linear, lora_linear
from doratune.peft.layer import EngineLayer
from doratune.peft.obstacles import (
    adapter_weights,
    base_of,
    matrix_adapter_obstacle,
    weight_obstacle,
    weight_of,
)


class EngineLinear(EngineLayer, Linear):
    """A ``peft.tuners.lora.layer.Linear`` whose class was swapped; never constructed.

    With ``fan_in_fan_out`` (GPT-2's Conv1D) the weight is stored as (d_in, d_out) and read transposed.
    """

    peft_class = Linear
    supports_attached_norm = True

    @staticmethod
    def adapter_obstacle(layer: Any, name: str) -> str | None:
        """See ``EngineLayer``."""
        base = base_of(layer)
        if type(base) not in (nn.Linear, Conv1D):
            return f"base layer {type(base).__name__} not supported"
        if layer.fan_in_fan_out != (type(base) is Conv1D):
            return "fan_in_fan_out is not as the base layer stores its weight"
        return matrix_adapter_obstacle(layer, name) or weight_obstacle(
            weight_of(base), adapter_weights(layer, name)
        )

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """The layer's output, (..., d_out), for x (..., d_in): PEFT's result in PEFT's dtype."""
        adapter = None if args or kwargs else self.adapter_on_engine()
        base = base_of(self)
        W = weight_of(base)
        # If the base layer does not take x's dtype, PEFT's path raises PyTorch's own error.
        if adapter is None or not (x.dtype == W.dtype or torch.is_autocast_enabled(x.device.type)):
            return super().forward(x, *args, **kwargs)
        W = W.T if self.fan_in_fan_out else W
        bias = base._parameters["bias"]
        A, B, *m = adapter_weights(self, adapter)
        scaling = self.scaling[adapter]
        x_dropped = self.dropped(x, adapter)
        if not m:
            return lora_linear(x, W, A, B, scaling, bias, x_dropped=x_dropped)
        options = self.engine_options
        return dora_linear(
            x,
            W,
            A,
            B,
            m[0],
            scaling,
            bias,
            norm=dense_norm(self.norms, adapter, W, A, B, scaling) if options.detach_norm else None,
            x_dropped=x_dropped,
            dropout=options.dropout,
            detach_norm=options.detach_norm,
        )

    def adapter_norm(self, adapter: str) -> Tensor:
        """See ``EngineLayer``."""
        W = weight_of(base_of(self))
        A, B, *_ = adapter_weights(self, adapter)
        return dense_norm(self.norms, adapter, W.T if self.fan_in_fan_out else W, A, B, self.scaling[adapter])
