"""A model whose weights have moved at random by as much as rounding to a type moves them."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from doratune.peft import merge_layer
from doratune.serving.adapted import AdaptedBase

ARITHMETIC = 4
"""How many roundings to float32 stand for the other order of the sums in a merged layer."""


def moved(values: Tensor, dtype: torch.dtype | None, name: str) -> Tensor:
    """Float32 values, moved at random: by half a unit of ``dtype`` at most, and always by some of float32's.

    Args:
        values: The values.
        dtype: The type that they will be rounded to; None: they stay as they are.
        name: The same name moves them in the same way.
    """
    kind = torch.finfo(dtype or torch.float32)
    step = max(kind.eps, ARITHMETIC * torch.finfo(torch.float32).eps) / 2
    generator = torch.Generator().manual_seed(zlib.crc32(name.encode()))
    noise = torch.rand(values.shape, generator=generator).mul_(2).sub_(1)
    return noise.mul_(values.abs().clamp_(min=kind.tiny).mul_(step)).add_(values)


def moved_weight(opened: AdaptedBase, types: Mapping[str, torch.dtype]) -> Callable[[str], Tensor]:
    """The base's weights as training saw them, moved.

    Args:
        opened: The adapter on its base.
        types: The types of the parameters that are rounded.
    """
    return lambda name: moved(opened.trained_weight(name), types.get(name), name)


@contextmanager
def moved_parameters(model: nn.Module, types: Mapping[str, torch.dtype]) -> Iterator[None]:
    """Move what the adapter brings in place of the base's parameters, inside the ``with`` statement.

    Args:
        model: The base model with the adapter.
        types: The types of the parameters that are rounded.
    """
    kept = [(one, one.data, name) for name, one in merge_layer.brought(model)]
    try:
        for one, values, name in kept:
            one.data = moved(values.float(), types.get(name), name)
        yield
    finally:
        for one, values, _ in kept:
            one.data = values
