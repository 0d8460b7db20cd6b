"""The base class of every layer on the engine."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor, nn

from doratune.engine.norm_cache import NormCache
from doratune.functional import DropoutForm
from doratune.peft._internals import (
    LoraLayer,
    adapter_modules,
    base_of,
    device_hook,
    dropout_of,
    must_be_called,
    rebind_forward,
)
from doratune.peft.first_calls import DISABLED, MERGED, NONE_ACTIVE, FirstCalls
from doratune.peft.obstacles import IN_UNITS
from doratune.peft.units import inside

MORE_ARGUMENTS = "called with more than an input"
UNFIT_INPUT = "the input's dtype or shape does not fit the base weight"


@dataclass(frozen=True)
class EngineOptions:
    """The form of DoRA that is computed.

    Args:
        dropout: Which terms use the dropped input; see ``doratune.functional.dora_linear``.
        detach_norm: Treat the norm as a constant of the backward pass (arXiv 2402.09353, section 4.3).
    """

    dropout: DropoutForm = "peft"
    detach_norm: bool = True


class Decision(NamedTuple):
    """Which adapter the engine computes, for as long as the layer's weights and modules are the same.

    Attributes:
        active: PEFT's note of which adapters are active.
        adapter: The one that is computed.
        parts: The modules that must not have hooks.
    """

    active: Any
    adapter: str
    parts: tuple[Any, ...]


class EngineLayer(nn.Module, LoraLayer):
    """A mixin for PEFT's layer classes; swapping a layer's class puts it on the engine.

    A call with one active adapter that the engine can compute runs on the engine. Any other call (merged,
    disabled, several adapters, mixed batches, other variants of LoRA) runs on PEFT's path.
    """

    peft_class: ClassVar[type[nn.Module]]
    """PEFT's class of the layer."""
    reads_parts: ClassVar[bool] = False
    """Whether ``base_of`` and ``adapter_modules`` are the modules whose weights a call reads."""
    supports_attached_norm: ClassVar[bool] = False
    """Whether the norm can be part of the backward pass."""
    engine_options: EngineOptions
    norms: NormCache
    first_calls: FirstCalls | None = None
    """Notes the layer's first call."""

    @staticmethod
    def adapter_obstacle(layer: Any, name: str, *, entered: bool = False) -> str | None:
        """Why the engine cannot compute the adapter ``name`` of a layer of this kind; None if it can.

        Args:
            layer: A layer of ``peft_class``, on the engine or not.
            name: One of its adapters.
            entered: Those of the adapter's modules that are units of FSDP2 are being called.
        """
        raise NotImplementedError

    def compute(self, x: Tensor, adapter: str) -> Tensor | None:
        """The layer's output, or None, before anything is computed, if x does not fit the base layer.

        Args:
            x: The layer's input.
            adapter: The active adapter, which has no obstacle.
        """
        raise NotImplementedError

    def adapter_parts(self, adapter: str) -> list[nn.Module]:
        """The modules that hold an adapter's weights."""
        return adapter_modules(self, adapter)

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """The layer's output: PEFT's result in PEFT's dtype, from the engine where that can compute it."""
        y = None
        if args or kwargs:
            reason: str | None = MORE_ARGUMENTS
        else:
            adapter, reason = self._decided(), None
            if adapter is None:
                adapter, reason = self._adapter_or_reason()
            if adapter is not None:
                hook = device_hook(base_of(self))
                if hook is not None:
                    (x,), _ = hook.pre_forward(self.base_layer, x)
                y = self.compute(x, adapter)
            elif reason is IN_UNITS:
                y, reason = self._compute_in_units(x)
        noted = self.first_calls
        if noted is not None and not noted.complete and not torch.compiler.is_compiling():
            noted.note(self, x, None if y is not None else (reason or UNFIT_INPUT))
        return super().forward(x, *args, **kwargs) if y is None else y

    def _compute_in_units(self, x: Tensor) -> tuple[Tensor | None, str | None]:
        """The output, computed while the units of FSDP2 that hold the adapter are called, or an obstacle."""
        (adapter,) = self.active_on_layer()
        obstacle: str | None = None

        def compute(x: Tensor) -> Tensor | None:
            nonlocal obstacle
            obstacle = self.adapter_obstacle(self, adapter, entered=True)
            return self.compute(x, adapter) if obstacle is None else None

        return inside(filter(must_be_called, self.adapter_parts(adapter)), compute, x), obstacle

    def adapter_norm(self, adapter: str) -> Tensor:
        """The norm that a DoRA adapter's magnitude is divided by, (d_out,), float32 or float64, detached."""
        raise NotImplementedError

    def held_scale(self, m: Tensor, adapter: str) -> Tensor | None:
        """``m / norm`` if the norm is held and the call computes no gradients; m is (d_out,)."""
        if torch.compiler.is_compiling() or torch.is_grad_enabled():
            return None
        return self.norms.scale(m, adapter=adapter, scaling=self.scaling[adapter])

    def dense_weights(self, adapter: str) -> tuple[Tensor, Tensor, Tensor] | None:
        """W, A and B of an adapter if all are stored as matrices; else None."""
        return None

    def adapter_on_engine(self) -> str | None:
        """The one active adapter if the engine can compute it with the weights as they are now, else None."""
        return self._decided() or self._adapter_or_reason()[0]

    def _decided(self) -> str | None:
        """The adapter that has been decided on for as long as the norms are held, if nothing has changed."""
        if torch.compiler.is_compiling():
            return None
        hold = self.norms.current_hold
        decision: Decision | None = None if hold is None else hold.decision
        if (
            decision is None
            or self._disable_adapters
            or self.merged_adapters
            or self._active_adapter != decision.active
            or decision.adapter not in self.scaling
            or must_be_called(*decision.parts)
        ):
            return None
        return decision.adapter

    def decide(self) -> str | None:
        """``adapter_on_engine``, which calls rely on for as long as the norms are held.

        Such calls still see that an adapter is switched, merged or disabled, and a hook on a part.
        """
        adapter, hold = self.adapter_on_engine(), self.norms.current_hold
        if adapter is not None and hold is not None and self.reads_parts:
            active, parts = self._active_adapter, (base_of(self), *adapter_modules(self, adapter))
            active = list(active) if isinstance(active, list) else active
            hold.decision = Decision(active, adapter, parts)
        return adapter

    def reason_for_peft(self) -> str | None:
        """Why a call now would run on PEFT's path with any input; None if it would not."""
        reason = self._adapter_or_reason()[1]
        return None if reason is IN_UNITS else reason

    def active_on_layer(self) -> list[str]:
        """The active adapters that this layer has."""
        return [name for name in self.active_adapters if name in self.scaling]

    def _adapter_or_reason(self) -> tuple[str, None] | tuple[None, str]:
        if self.disable_adapters:
            return None, DISABLED
        if self.merged_adapters:
            return None, MERGED
        active = self.active_on_layer()
        if len(active) != 1:
            return None, "several active adapters" if active else NONE_ACTIVE
        obstacle = self.adapter_obstacle(self, active[0])
        return (active[0], None) if obstacle is None else (None, obstacle)

    def dropped(self, x: Tensor, adapter: str) -> Tensor | None:
        """The input after the adapter's dropout, or None if there is no dropout."""
        dropout = dropout_of(self, adapter)
        idle = type(dropout) is nn.Identity or (type(dropout) is nn.Dropout and not dropout.training)
        # PEFT's DoRA skips an Identity and checks the layer's training mode; its LoRA always calls dropout.
        if self.use_dora.get(adapter, False):
            return None if idle or not self.training else dropout(x)
        return None if idle and not must_be_called(dropout) else dropout(x)


def adopt(layer: Any, engine_class: type[EngineLayer], options: EngineOptions) -> None:
    """Put one of PEFT's layers on the engine, in place."""
    _swap(layer, engine_class.peft_class, engine_class)
    layer.norms = NormCache()
    layer.engine_options = options


def release(layer: Any) -> None:
    """Return a layer to PEFT, in place."""
    del layer.norms, layer.engine_options
    layer.__dict__.pop("first_calls", None)
    _swap(layer, engine_class_of(type(layer)), layer.peft_class)


def engine_class_of(kind: type) -> type[EngineLayer]:
    """The engine's class that a layer's class is or, under FSDP2, derives from."""
    return next(one for one in kind.__mro__ if "peft_class" in vars(one))


def _swap(layer: Any, old: type, new: type) -> None:
    """Replace the class ``old`` of a layer, above which FSDP2 and accelerate may have put their own code."""
    rebind_forward(layer, type(layer).forward, new.forward)
    layer.__class__ = _with_base(type(layer), old, new)


_derived: dict[tuple[type, type], type] = {}
"""Classes of FSDP2 and their twins, by the class and the twin's base."""


def _with_base(kind: type, old: type, new: type) -> type:
    """``new``, or the twin of FSDP2's class ``kind`` that derives from ``new`` instead of ``old``."""
    if kind is old:
        return new
    if (kind, new) not in _derived:
        bases = tuple(new if base is old else base for base in kind.__bases__)
        content = {
            name: value for name, value in vars(kind).items() if name not in ("__dict__", "__weakref__")
        }
        twin = type(kind.__name__.replace(old.__name__, new.__name__), bases, content)
        _derived[kind, new], _derived[twin, old] = twin, kind
    return _derived[kind, new]
