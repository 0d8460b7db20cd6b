"""A layer's output, found again in the backward pass without being kept.

The magnitude's gradient needs z, the output before scaling. Keeping it would cost a (tokens, d_out) tensor
that LoRA does not keep. But the next operation often keeps y for its own gradient, and z = y / g; so the
layer holds y weakly. Where nobody keeps y, or it was changed in place, z is computed again.

An operation lets go of what it kept as soon as its own backward step is done, which is just before the step
of the layer whose output it was. So the first layer to be reached by a backward pass takes hold of the
outputs of all others that are still there; each is let go in its layer's own step. Only the first layer
itself is too late.

Where memory is no matter, ``keep_outputs`` keeps every y: one product with the base weight less for each
layer whose output nobody else keeps.

Non-reentrant checkpointing (``torch.utils.checkpoint``) is the exception: a node's own saved tensors are the
only ones that it gives back, and they cost memory in one block at a time only, so y is saved under it.
"""

from __future__ import annotations

import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import torch
from torch import Tensor
from torch.utils.weak import TensorWeakRef

SMALLEST_SCALE = 2.0**-6
"""Below this |g|, y may have lost digits of z to the bottom of float16's range; at 0, all of them."""

SMALLEST_SCALE_BESIDE_BIAS = 2.0**-2
"""Below this |g|, z may be lost in the rounding of y = g ⊙ z + b more than PEFT loses it in that of z + b."""

_keeping: ContextVar[bool] = ContextVar("doratune_keep_outputs", default=False)

_pending: weakref.WeakSet[WeakOutput] = weakref.WeakSet()
"""Outputs whose layers no backward pass has come near yet."""


@contextmanager
def keep_outputs() -> Iterator[None]:
    """Keep the output of every layer called inside until its backward step."""
    token = _keeping.set(True)
    try:
        yield
    finally:
        _keeping.reset(token)


class WeakOutput:
    """A tensor as it is now, for as long as the graph of somebody else keeps it, or ``keep_outputs`` does.

    Args:
        tensor: The output that a consumer may keep.
    """

    def __init__(self, tensor: Tensor) -> None:
        self._reference = TensorWeakRef(tensor)
        # Without a version, in inference mode, there is no backward pass either.
        self._version = None if tensor.is_inference() else tensor._version
        # Detached, since the graph of the tensor owns this object.
        self._held: Tensor | None = tensor.detach() if _keeping.get() else None
        if self._held is None:
            _pending.add(self)

    def take(self) -> Tensor | None:
        """The tensor, detached, or None if it is gone or was changed in place since."""
        if self._held is None:
            self.hold()
        tensor, self._held = self._held, None
        return tensor if tensor is not None and tensor._version == self._version else None

    def hold(self) -> None:
        """Keep the tensor, if it is still there, until ``take``."""
        tensor = self._reference()
        self._held = None if tensor is None else tensor.detach()


def hold_pending_outputs() -> None:
    """Keep the outputs that others still keep; every backward step of a layer begins with it."""
    while _pending:
        _pending.pop().hold()


def under_checkpoint() -> bool:
    """Whether tensors saved now go to non-reentrant checkpointing, which computes them again when needed."""
    hooks: Any = torch._C._autograd._top_saved_tensors_default_hooks(True)  # pyright: ignore[reportAttributeAccessIssue]
    return hooks is not None and getattr(hooks[0], "__module__", None) == "torch.utils.checkpoint"


class ReadLater:
    """A number on its way from a GPU. To ask for it at once would stall the GPU until it has computed it.

    Args:
        value: One element, on a GPU.
    """

    def __init__(self, value: Tensor) -> None:
        self._host = value.detach().to("cpu", non_blocking=True)
        self._arrived = torch.cuda.Event()
        self._arrived.record(torch.cuda.current_stream(value.device))

    def get(self) -> float:
        """The number."""
        self._arrived.synchronize()
        return self._host.item()


def needed_scale(*, beside_bias: bool) -> float:
    """The smallest |g| by which y = g ⊙ z + b may be divided for z, with a b or without."""
    return SMALLEST_SCALE_BESIDE_BIAS if beside_bias else SMALLEST_SCALE


def can_be_divided(g: Tensor, norm: Tensor, smallest: ReadLater | None, *, beside_bias: bool) -> bool:
    """Whether z can be had from y = g ⊙ z + b: no g is too small, but on a CPU for rows whose norm is zero.

    Args:
        g: (d_out,).
        norm: (d_out,); where it is 0, g is 0 and the magnitude gets no gradient.
        smallest: On a GPU, the smallest |g|.
        beside_bias: Whether there is a b.
    """
    needed = needed_scale(beside_bias=beside_bias)
    if smallest is not None:
        return smallest.get() >= needed
    # Nearly always the first look tells.
    return bool(g.amin() >= needed) or not bool(((g.abs() < needed) & (norm > 0)).any())
