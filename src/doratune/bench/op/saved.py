"""What a layer keeps for its backward pass."""

from __future__ import annotations

from itertools import chain

import torch
from torch import Tensor, nn


def saved_bytes(layer: nn.Module, x: Tensor) -> int:
    """Bytes that autograd holds between forward and backward of one call.

    Counted are storages, each once and whole, that the forward pass gives autograd to save: the input and
    the output too where they are saved. The layer's own parameters and buffers are not. What a function
    hides from autograd by keeping it as an attribute of its context cannot be seen.

    Args:
        layer: The layer.
        x: Its input.
    """
    own = {tensor.untyped_storage().data_ptr() for tensor in chain(layer.parameters(), layer.buffers())}
    kept: dict[int, torch.UntypedStorage] = {}

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            kept[storage.data_ptr()] = storage  # held, so that no other storage gets its address
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        layer(x)
    return sum(storage.nbytes() for storage in kept.values())
