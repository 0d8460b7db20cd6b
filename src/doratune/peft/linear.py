"""PEFT's LoRA linear layer computed by the engine."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from doratune.engine.autocast import is_autocast
from doratune.engine.linear import adapted_linear
from doratune.engine.norm_cache import dense_norm
from doratune.functional import dora_linear, lora_linear
from doratune.peft._internals import Conv1D, Linear, adapter_weights, base_of, bias_of, weight_of
from doratune.peft.layer import EngineLayer
from doratune.peft.obstacles import matrix_adapter_obstacle, shape_obstacle, weight_obstacle


class EngineLinear(EngineLayer, Linear):
    """A ``peft.tuners.lora.layer.Linear`` whose class was swapped; never constructed.

    With ``fan_in_fan_out`` (GPT-2's Conv1D) the weight is stored as (d_in, d_out) and read transposed.
    """

    peft_class = Linear
    reads_parts = True
    supports_attached_norm = True

    @staticmethod
    def adapter_obstacle(layer: Any, name: str, *, entered: bool = False) -> str | None:
        """See ``EngineLayer``."""
        base = base_of(layer)
        if type(base) not in (nn.Linear, Conv1D):
            return f"base layer {type(base).__name__} not supported"
        if layer.fan_in_fan_out != (type(base) is Conv1D):
            return "fan_in_fan_out does not match how the base layer stores its weight"
        obstacle = matrix_adapter_obstacle(layer, name, entered=entered)
        if obstacle is not None:
            return obstacle
        weights, W = adapter_weights(layer, name), weight_of(base)
        shape = W.shape[::-1] if layer.fan_in_fan_out else W.shape
        return weight_obstacle(W, weights) or shape_obstacle(shape, weights)

    def compute(self, x: Tensor, adapter: str) -> Tensor | None:
        """The layer's output, (..., d_out), for x (..., d_in); see ``EngineLayer``."""
        base = base_of(self)
        W = weight_of(base)
        device = x.device.type
        autocast = is_autocast(device)
        # If the base layer does not accept x's dtype, PEFT's path raises PyTorch's own error.
        if not (autocast or x.dtype == W.dtype):
            return None
        W = W.T if self.fan_in_fan_out else W
        bias = bias_of(base)
        A, B, *rest = adapter_weights(self, adapter)
        scaling, options = self.scaling[adapter], self.engine_options
        m = norm = g = None
        if rest:
            m = rest[0]
            if options.detach_norm:
                norm = None if torch.compiler.is_compiling() else self.norms.found(adapter, scaling)
                g = self.held_scale(m, adapter)
                if norm is None:  # a function, since a small layer does not need it
                    norm = partial(dense_norm, self.norms, adapter, W, A, B, scaling)
        x_dropped = self.dropped(x, adapter)
        if x_dropped is None and (norm is not None or m is None):
            if autocast and x.dtype != torch.float64:
                x = x.to(torch.get_autocast_dtype(device))
            return adapted_linear(x, W, A, B, scaling, bias, m=m, norm=norm, g=g)
        if m is None:
            return lora_linear(x, W, A, B, scaling, bias, x_dropped=x_dropped)
        return dora_linear(
            x,
            W,
            A,
            B,
            m,
            scaling,
            bias,
            norm=norm,
            x_dropped=x_dropped,
            dropout=options.dropout,
            detach_norm=options.detach_norm,
        )

    def dense_weights(self, adapter: str) -> tuple[Tensor, Tensor, Tensor]:
        """See ``EngineLayer``."""
        W = weight_of(base_of(self))
        A, B, *_ = adapter_weights(self, adapter)
        return W.T if self.fan_in_fan_out else W, A, B

    def adapter_norm(self, adapter: str) -> Tensor:
        """See ``EngineLayer``."""
        return dense_norm(self.norms, adapter, *self.dense_weights(adapter), self.scaling[adapter])
