"""Runs the last layer's MLP only at tokens that have a loss.

After the last attention no token reads another, so the last MLP's output matters only for tokens that the
head scores. Everywhere else the MLP is skipped and the layer adds zeros.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel


def layer_with_last_mlp(model: PreTrainedModel) -> nn.Module | None:
    """The last of a model's ``layers`` if it has a dense ``mlp`` that no other layer shares, or None."""
    layers: Any = getattr(model.base_model, "layers", None)
    if not isinstance(layers, nn.ModuleList) or not layers:
        return None
    *others, mlp = (getattr(layer, "mlp", None) for layer in layers)
    # A mixture of experts has no ``down_proj``, and may weigh its tokens against each other.
    is_own = hasattr(mlp, "down_proj") and all(one is not mlp for one in others)
    return layers[-1] if is_own else None


@contextmanager
def run_at(layer: Any, tokens: Tensor, shape: torch.Size) -> Iterator[None]:
    """Run a layer's MLP only at some tokens inside; its output is zero at all others.

    The layer is not checkpointed even where the others are, since a recomputation would no longer have the
    hooks. That takes hardly more memory: its backward step comes first and would recompute at once.

    Args:
        layer: Its ``mlp`` computes (rows, width, d) from (rows, width, d), token by token.
        tokens: Distinct indices into the flattened batch, (n,), int64.
        shape: (rows, width) of the batch.
    """

    def gather(_mlp: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
        hidden, *others = args
        return hidden.flatten(0, 1).index_select(0, tokens)[None], *others

    def scatter(_mlp: nn.Module, _args: tuple[Any, ...], out: Tensor) -> Tensor:
        everywhere = out.new_zeros(shape.numel(), out.shape[-1])
        return everywhere.index_copy(0, tokens, out[0]).unflatten(0, shape)

    checkpoints = getattr(layer, "gradient_checkpointing", False)
    handles = layer.mlp.register_forward_pre_hook(gather), layer.mlp.register_forward_hook(scatter)
    try:
        if checkpoints:
            layer.gradient_checkpointing = False
        yield
    finally:
        if checkpoints:
            layer.gradient_checkpointing = True
        for handle in handles:
            handle.remove()
