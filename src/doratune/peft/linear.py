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
from doratune.peft.support import adapter_weights, matrix_adapter_obstacle, weight_obstacle


class EngineLinear(EngineLayer, Linear):
    """A ``peft.tuners.lora.layer.Linear`` whose class was swapped; never constructed.

    With ``fan_in_fan_out`` (GPT-2's Conv1D) the weight is stored as (d_in, d_out) and read transposed.
    """

    peft_class = Linear
    supports_attached_norm = True

    @staticmethod
    def adapter_obstacle(layer: Any, name: str) -> str | None:
        """See ``EngineLayer``."""
        base = layer.base_layer
        if type(base) not in (nn.Linear, Conv1D):
            return f"base layer {type(base).__name__} not supported"
        if layer.fan_in_fan_out != (type(base) is Conv1D):
            return "fan_in_fan_out is not as the base layer stores its weight"
        return matrix_adapter_obstacle(layer, name) or weight_obstacle(
            base.weight, adapter_weights(layer, name)
        )

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """The layer's output, (..., d_out), for x (..., d_in): PEFT's result in PEFT's dtype."""
        adapter = None if args or kwargs else self.adapter_on_engine()
        # What PEFT's type hints leave open, the obstacle has checked.
        base: Any = self.base_layer
        if adapter is None or not _same_dtype(x, base.weight):
            return super().forward(x, *args, **kwargs)
        W = self._weight()
        A: Any = self.lora_A[adapter].weight
        B: Any = self.lora_B[adapter].weight
        scaling = self.scaling[adapter]
        x_dropped = self.dropped(x, adapter)
        if not self.use_dora.get(adapter, False):
            return lora_linear(x, W, A, B, scaling, base.bias, x_dropped=x_dropped)
        m: Any = self.lora_magnitude_vector[adapter].weight
        options = self.engine_options
        norm = self.adapter_norm(adapter) if options.detach_norm else None
        return dora_linear(
            x,
            W,
            A,
            B,
            m,
            scaling,
            base.bias,
            norm=norm,
            x_dropped=x_dropped,
            dropout=options.dropout,
            detach_norm=options.detach_norm,
        )

    def adapter_norm(self, adapter: str) -> Tensor:
        """See ``EngineLayer``."""
        A: Any = self.lora_A[adapter].weight
        B: Any = self.lora_B[adapter].weight
        return dense_norm(self.norms, adapter, self._weight(), A, B, self.scaling[adapter])

    def _weight(self) -> Tensor:
        """W, (d_out, d_in)."""
        base: Any = self.base_layer
        return base.weight.T if self.fan_in_fan_out else base.weight


def _same_dtype(x: Tensor, weight: Tensor) -> bool:
    """Whether the base layer takes x; if it does not, PEFT's path raises PyTorch's own error."""
    return x.dtype == weight.dtype or torch.is_autocast_enabled(x.device.type)
