"""The last layer's MLP where there is a loss.

Behind the last attention no token reads another any more, so nobody looks at what the last MLP makes of
tokens that the head does not score. It is left out there: the layer adds zeros.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel


def last_mlp(model: PreTrainedModel) -> nn.Module | None:
    """The dense MLP of the last decoder layer; None where there is none under the usual names."""
    layers: Any = getattr(model.base_model, "layers", None)
    mlp = getattr(layers[-1], "mlp", None) if isinstance(layers, nn.ModuleList) and len(layers) else None
    # A mixture of experts has none, and may weigh its tokens against each other.
    return mlp if isinstance(mlp, nn.Module) and hasattr(mlp, "down_proj") else None


@contextmanager
def run_at(mlp: nn.Module, tokens: Tensor) -> Iterator[None]:
    """Run a module at some tokens inside; its output is zero at all others.

    Args:
        mlp: Computes (rows, width, d) from (rows, width, d), token by token.
        tokens: Places in the flattened batch, (n,), int64, none of them twice.
    """
    shape = torch.Size()

    def gather(_mlp: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
        nonlocal shape
        hidden, *others = args
        shape = hidden.shape[:2]
        return hidden.flatten(0, 1).index_select(0, tokens)[None], *others

    def scatter(_mlp: nn.Module, _args: tuple[Any, ...], out: Tensor) -> Tensor:
        everywhere = out.new_zeros(shape.numel(), out.shape[-1])
        return everywhere.index_copy(0, tokens, out[0]).unflatten(0, shape)

    handles = mlp.register_forward_pre_hook(gather), mlp.register_forward_hook(scatter)
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
