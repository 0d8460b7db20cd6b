"""PEFT's LoRA embedding computed by the engine.

Shapes: ids (...) of N elements, W (vocab, d) frozen, A (r, vocab), B (d, r), m (d,)::

    h = (A's columns at the ids)ᵀ      (N, r)
    z = W[ids] + s·h Bᵀ                (..., d)
    y = g ⊙ z                          g = m / n, n the norm of each row of Wᵀ + s·B·A

If the base layer scales its embeddings (``embed_scale``, as in Gemma), h is scaled too, as in PEFT; the norm
ignores it. PEFT applies no dropout here, not even for LoRA.

The layer saves nothing of the output's size for the backward pass, and of what LoRA saves only the ids: h is
looked up again.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn.functional import embedding

from doratune.engine.autocast import autocast_off
from doratune.engine.lowrank import up_gradient
from doratune.engine.magnitude import scale_by_magnitude
from doratune.engine.matmul import matmul
from doratune.engine.norm_cache import dense_norm
from doratune.peft._internals import (
    DoraEmbeddingLayer,
    DoraEmbeddingVariant,
    Embedding,
    class_below_fsdp,
    embedding_backward,
)
from doratune.peft.layer import EngineLayer
from doratune.peft.obstacles import hook_obstacle, variant_obstacle, weight_obstacle


class EngineEmbedding(EngineLayer, Embedding):
    """A ``peft.tuners.lora.layer.Embedding`` whose class was swapped; never constructed."""

    peft_class = Embedding

    @staticmethod
    def adapter_obstacle(layer: Any, name: str, *, entered: bool = False) -> str | None:
        """See ``EngineLayer``."""
        weights = [layer.lora_embedding_A[name], layer.lora_embedding_B[name]]
        magnitudes = _magnitudes(layer, name)
        if any(class_below_fsdp(one) is not DoraEmbeddingLayer for one in magnitudes):
            return "adapter weights wrapped by another module"
        weights += [one.weight for one in magnitudes]
        return (
            _base_obstacle(layer.base_layer)
            or ("tensor parallelism not supported" if layer.tp_layer is not None else None)
            or variant_obstacle(layer, name, DoraEmbeddingVariant)
            or hook_obstacle(layer.base_layer, magnitudes, entered=entered)
            or weight_obstacle(layer.base_layer.weight, weights)
        )

    def adapter_parts(self, adapter: str) -> list[nn.Module]:
        """See ``EngineLayer``; A and B are parameters of the layer itself."""
        return _magnitudes(self, adapter)

    def compute(self, x: Tensor, adapter: str) -> Tensor:
        """The layer's output, (..., d), for the ids x (...); see ``EngineLayer``."""
        base: Any = self.base_layer
        A, B, scaling = self.lora_embedding_A[adapter], self.lora_embedding_B[adapter], self.scaling[adapter]
        rest = (A, B, scaling, base, self._get_embed_scale())
        composed = torch.compiler.is_compiling() or not torch.is_grad_enabled()
        z: Any = _composite(x, *rest) if composed else _AdaptedLookup.apply(x, *rest)
        if not self.use_dora.get(adapter, False):
            return z
        m: Any = self.lora_magnitude_vector[adapter].weight
        remake = partial(_composite, A=A, B=B, scaling=scaling, base=base, embed_scale=rest[-1])
        norm = self.adapter_norm(adapter)
        g = self.held_scale(m, adapter)
        return scale_by_magnitude(z, m, norm, g=g, remake=remake, kept=(x,))

    def adapter_norm(self, adapter: str) -> Tensor:
        """See ``EngineLayer``."""
        W: Any = self.base_layer.weight
        A, B = self.lora_embedding_A[adapter], self.lora_embedding_B[adapter]
        return dense_norm(self.norms, adapter, W.T, A, B, self.scaling[adapter])


def _magnitudes(layer: Any, name: str) -> list[Any]:
    """The module that holds m, if the adapter is DoRA."""
    return [layer.lora_magnitude_vector[name]] if layer.use_dora.get(name, False) else []


def _base_obstacle(base: Any) -> str | None:
    """Why a base layer is not a plain lookup, possibly scaled; None if it is."""
    multiplies = hasattr(base, "embed_scale")
    if not isinstance(base, nn.Embedding) or (
        type(base).forward is not nn.Embedding.forward and not multiplies
    ):
        return f"base layer {type(base).__name__} not supported"
    if base.max_norm is not None:
        return "max_norm, which changes the weights when they are read, not supported"
    return "sparse gradients not supported" if base.sparse else None


def _composite(
    ids: Tensor, A: Tensor, B: Tensor, scaling: float, base: nn.Embedding, embed_scale: Tensor | None
) -> Tensor:
    """Compute z in PyTorch's own operations."""
    z = base(ids)
    with autocast_off(z.device):
        h = _looked_up(ids, A, embed_scale, z.dtype)
        matmul(h, B.to(z.dtype).T, alpha=scaling, onto=z.view(-1, z.shape[-1]))
    return z


def _looked_up(ids: Tensor, A: Tensor, embed_scale: Tensor | None, dtype: torch.dtype) -> Tensor:
    """Compute h, (N, r), in ``dtype``."""
    h = embedding(ids.reshape(-1), A.T)
    return _scaled(h, embed_scale).to(dtype)


def _scaled(h: Tensor, embed_scale: Tensor | None) -> Tensor:
    return h if embed_scale is None else h * embed_scale.to(h.dtype)


class _AdaptedLookup(torch.autograd.Function):
    """z and its gradients: T = s·dZ B, dB = s·dZᵀ h, and dA sums T over the occurrences of each id."""

    @staticmethod
    def forward(
        ctx: Any,
        ids: Tensor,
        A: Tensor,
        B: Tensor,
        scaling: float,
        base: nn.Embedding,
        embed_scale: Tensor | None,
    ) -> Tensor:
        ctx.scaling, ctx.base, ctx.embed_scale = scaling, base, embed_scale
        ctx.save_for_backward(ids, A, B)
        return _composite(ids, A, B, scaling, base, embed_scale)

    @staticmethod
    @once_differentiable
    def backward(  # pyright: ignore[reportIncompatibleMethodOverride]
        ctx: Any, dZ: Tensor
    ) -> tuple[Tensor | None, ...]:
        ids, A, B = ctx.saved_tensors
        dZ = dZ.reshape(-1, dZ.shape[-1])
        dA = dB = None
        with autocast_off(dZ.device):
            if ctx.needs_input_grad[1]:
                T = matmul(dZ, B.to(dZ.dtype), alpha=ctx.scaling).to(A.dtype)
                dA = embedding_backward(
                    _scaled(T, ctx.embed_scale),
                    ids.reshape(-1),
                    A.shape[1],
                    -1 if ctx.base.padding_idx is None else ctx.base.padding_idx,
                    ctx.base.scale_grad_by_freq,
                ).T
            if ctx.needs_input_grad[2]:
                h = _looked_up(ids, A, ctx.embed_scale, dZ.dtype)
                dB = up_gradient(dZ, h, B.dtype)
                dB.mul_(ctx.scaling)
        return None, dA, dB, None, None, None
