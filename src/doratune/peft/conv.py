"""PEFT's LoRA convolutions computed by the engine.

    z = conv(x, W) + s·conv(conv(x, A), B)        y = g ⊙ z + b, g along the channels

computed by PyTorch's convolutions with the stride, padding, dilation and groups of the base layer and of
PEFT's A and B. A and B have no dilation, A has no groups, and B has a kernel of size one. The norm is that of
a linear layer: of W, A and B as matrices with one row per output channel.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from doratune.engine.autocast import autocast_off, is_autocast
from doratune.engine.dropout import dora_with_dropout
from doratune.engine.magnitude import scale_by_magnitude
from doratune.engine.norm_cache import dense_norm
from doratune.engine.weight_norm import norm_dtype
from doratune.peft._internals import (
    Conv1d,
    Conv2d,
    Conv3d,
    DoraConv1dLayer,
    DoraConv1dVariant,
    DoraConv2dLayer,
    DoraConv2dVariant,
    DoraConv3dLayer,
    DoraConv3dVariant,
    adapter_weights,
    convolve,
)
from doratune.peft.layer import EngineLayer
from doratune.peft.obstacles import module_obstacle, variant_obstacle, weight_obstacle

_PARTS = {
    3: (nn.Conv1d, DoraConv1dLayer, DoraConv1dVariant),
    4: (nn.Conv2d, DoraConv2dLayer, DoraConv2dVariant),
    5: (nn.Conv3d, DoraConv3dLayer, DoraConv3dVariant),
}
"""The classes of a layer's parts, by the kernel's number of dimensions."""


class EngineConv(EngineLayer):
    """Mixed into PEFT's convolutions; see ``EngineLayer``."""

    @staticmethod
    def adapter_obstacle(layer: Any, name: str, *, entered: bool = False) -> str | None:
        """See ``EngineLayer``."""
        base = layer.base_layer
        conv, magnitude, variant = _PARTS[layer._kernel_dim]
        if type(base) is not conv:
            return f"base layer {type(base).__name__} not supported"
        return (
            variant_obstacle(layer, name, variant)
            or ("lora_bias not supported" if layer.lora_bias.get(name, False) else None)
            or module_obstacle(layer, name, conv, magnitude, entered=entered)
            or weight_obstacle(base.weight, adapter_weights(layer, name))
            or _padding_obstacle(layer, name)
        )

    def compute(self, x: Tensor, adapter: str) -> Tensor | None:
        """The layer's output, (N, d_out, ...), for x (N, d_in, ...); see ``EngineLayer``."""
        weight: Any = self.base_layer.weight
        autocast = is_autocast(x.device.type) and x.dtype != torch.float64
        # PEFT accepts an x without a batch dimension, at least for LoRA, and raises for other shapes.
        if x.ndim != weight.ndim or not (autocast or x.dtype == weight.dtype):
            return None
        x_dropped = self.dropped(x, adapter)
        if autocast:
            x = x.to(torch.get_autocast_dtype(x.device.type))
        with autocast_off(x.device):
            return self._adapted(x, None if x_dropped is None else x_dropped.to(x.dtype), adapter)

    def _adapted(self, x: Tensor, x_dropped: Tensor | None, adapter: str) -> Tensor:
        """The layer's output."""
        base: Any = self.base_layer
        A, B, scaling = self.lora_A[adapter], self.lora_B[adapter], self.scaling[adapter]
        if not self.use_dora.get(adapter, False):
            source = x if x_dropped is None else x_dropped
            return _add_update(convolve(base, x, base.bias), source, A, B, scaling)
        m: Any = self.lora_magnitude_vector[adapter].weight

        def recompute(x: Tensor, source: Tensor) -> Tensor:
            with autocast_off(x.device):
                return _add_update(convolve(base, x), source, A, B, scaling)

        def scaled(x: Tensor, source: Tensor, with_bias: bool) -> Tensor:
            return scale_by_magnitude(
                _add_update(convolve(base, x), source, A, B, scaling),
                m.flatten(),
                self.adapter_norm(adapter),
                base.bias if with_bias else None,
                channel_dim=1,
                g=self.held_scale(m.flatten(), adapter),
                remake=recompute,
                kept=(x, source),
            )

        def difference(x: Tensor, x_dropped: Tensor) -> Tensor:
            return convolve(base, x - x_dropped, base.bias)

        form = self.engine_options.dropout
        return dora_with_dropout(x, x_dropped, form, scaled=scaled, difference=difference)

    def adapter_norm(self, adapter: str) -> Tensor:
        """See ``EngineLayer``; PEFT's norm for each output channel."""
        base: Any = self.base_layer
        W, scaling = base.weight, self.scaling[adapter]
        A: Any = self.lora_A[adapter].weight
        B: Any = self.lora_B[adapter].weight
        if base.groups == 1:
            return dense_norm(self.norms, adapter, W.flatten(1), A.flatten(1), B.flatten(1), scaling)
        return _grouped_norm(W, A, B, scaling)


class EngineConv1d(EngineConv, Conv1d):
    """A ``peft.tuners.lora.layer.Conv1d`` whose class was swapped; never constructed."""

    peft_class = Conv1d


class EngineConv2d(EngineConv, Conv2d):
    """A ``peft.tuners.lora.layer.Conv2d`` whose class was swapped; never constructed."""

    peft_class = Conv2d


class EngineConv3d(EngineConv, Conv3d):
    """A ``peft.tuners.lora.layer.Conv3d`` whose class was swapped; never constructed."""

    peft_class = Conv3d


def _padding_obstacle(layer: Any, name: str) -> str | None:
    """Why PEFT's second base convolution, for dropout, pads unlike the first; None if it pads alike."""
    mode = layer.base_layer.padding_mode
    dropout = not isinstance(layer.lora_dropout[name], nn.Identity)
    if layer.use_dora.get(name, False) and dropout and mode != "zeros":
        return f"dropout with padding_mode={mode!r}, which PEFT ignores for the dropped input"
    return None


def _add_update(z: Tensor, x: Tensor, A: nn.Module, B: nn.Module, scaling: float) -> Tensor:
    """``z + s·conv(conv(x, A), B)``, all in one dtype."""
    return torch.add(z, convolve(B, convolve(A, x)), alpha=scaling)


@torch.no_grad()
def _grouped_norm(W: Tensor, A: Tensor, B: Tensor, scaling: float) -> Tensor:
    """The norm of what PEFT uses as the weight if the base layer has groups.

    A (r, d_in, ...) reads all input channels and B (d_out, r/groups, ...) a part of A's output, so their
    product cannot have W's shape (d_out, d_in/groups, ...). PEFT reinterprets B's memory as
    (d_out/groups, r) and the product's memory as W's shape. With groups, W is small compared with the layer's
    input, so the dense form will do.

    Returns:
        (d_out,), float32 (float64 if W, A or B is).
    """
    dtype, rank = norm_dtype(W, A, B), A.shape[0]
    update = B.to(dtype).reshape(-1, rank) @ A.to(dtype).reshape(rank, -1)
    V = W.to(dtype).flatten(1).add(update.view(W.shape[0], -1), alpha=scaling)
    return torch.linalg.vector_norm(V, dim=1)
