"""Recovers z from a layer's output y = g ⊙ z + b in the backward pass, so that z need not be kept.

The magnitude's gradient needs z, the output before scaling. Keeping it would cost a (tokens, d_out) tensor
that LoRA does not keep. But the next operation often keeps y for its own gradient, and z = (y - b) / g. So
the layer holds a weak reference to y, and recomputes z if y is gone or was changed in place, or if some g is
too small to divide by.

An operation releases what it kept as soon as its backward step is done, just before the step of the layer
that produced it. So the first layer that a backward pass reaches takes references to all other layers'
outputs that still exist; each is released in its layer's step. For the first layer itself it is too late.

Where memory does not matter, ``keep_outputs`` keeps every y. That saves a product with the base weight for
each layer whose output no other operation keeps. Under non-reentrant checkpointing
(``torch.utils.checkpoint``) the layer saves y itself: checkpointing restores only a node's own saved tensors,
and they take memory in only one block at a time.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar

import torch
from torch import Tensor

from doratune.engine._internals import TensorWeakRef, saves_for_checkpoint, version

SMALLEST_SCALE = 2.0**-6
"""Below this |g|, y may have lost digits of z to the bottom of float16's range; at 0, all of them."""

SMALLEST_SCALE_WITH_BIAS = 2.0**-2
"""Below this |g|, the rounding of y = g ⊙ z + b may cost z more digits than PEFT's rounding of z + b does."""

_keeping: ContextVar[bool] = ContextVar("doratune_keep_outputs", default=False)

_pending: weakref.WeakSet[OutputRecovery] = weakref.WeakSet()
"""Outputs that no backward pass has reached yet."""


@contextmanager
def keep_outputs() -> Iterator[None]:
    """Keep the output of every layer called inside until its backward step."""
    token = _keeping.set(True)
    try:
        yield
    finally:
        _keeping.reset(token)


class OutputRecovery:
    """The output y of a layer, for as long as something else keeps it unchanged.

    Args:
        y: The output that a consumer may keep.
        divisible: Whether z can be recovered from y; called in the backward pass. See ``divisibility``.
    """

    def __init__(self, y: Tensor, divisible: Callable[[], bool]) -> None:
        self._divisible = divisible
        self._reference: TensorWeakRef | None = None
        self._held: Tensor | None = None
        self.saves = saves_for_checkpoint()
        """Whether the layer must save y itself and pass it to ``take``."""
        if self.saves:
            return
        # In inference mode y has no version, and there is no backward pass.
        self._version = None if y.is_inference() else version(y)
        if _keeping.get():
            self._held = y.detach()  # not y, whose graph owns this object: that would be a reference cycle
        else:
            self._reference = TensorWeakRef(y)
            _pending.add(self)

    def take(self, saved: Tensor | None) -> Tensor | None:
        """y, detached, or None if z must be recomputed.

        Args:
            saved: y if the layer saved it, else None.
        """
        if self._reference is not None and self._held is None:
            self.hold()
        y, self._held = self._held, None
        if y is not None and version(y) != self._version:
            y = None
        y = saved if self.saves else y
        return y if y is not None and self._divisible() else None

    def hold(self) -> None:
        """Keep y, if it still exists, until ``take``."""
        y = None if self._reference is None else self._reference()
        self._held = None if y is None else y.detach()


def hold_pending_outputs() -> None:
    """Keep the outputs that still exist; every backward step of a layer begins with this."""
    while True:
        try:
            recovery = _pending.pop()
        except KeyError:  # empty, or emptied by the backward pass of another thread
            return
        recovery.hold()


def needed_scale(*, with_bias: bool) -> float:
    """The smallest |g| at which z may be recovered from y = g ⊙ z + b, with b or without."""
    return SMALLEST_SCALE_WITH_BIAS if with_bias else SMALLEST_SCALE


def divisibility(g: Tensor, norm: Tensor, *, with_bias: bool) -> Callable[[], bool]:
    """A test whether z can be recovered from y = g ⊙ z + b: |g| is large enough wherever the norm is not 0.

    On a GPU the answer is computed now and copied to the host while the forward pass continues; waiting for
    it here would stall the GPU.

    Args:
        g: (d_out,).
        norm: (d_out,); where it is 0, so are g and the magnitude's gradient.
        with_bias: Whether there is a b.
    """
    needed = needed_scale(with_bias=with_bias)

    def no_small() -> Tensor:
        return ((g.abs() >= needed) | (norm == 0)).all()

    if not g.is_cuda:
        # The first test nearly always decides.
        return lambda: g.amin().item() >= needed or bool(no_small())
    answer = no_small().to("cpu", non_blocking=True)
    arrived = torch.cuda.Event()
    arrived.record(torch.cuda.current_stream(g.device))

    def read() -> bool:
        arrived.synchronize()
        return bool(answer)

    return read
