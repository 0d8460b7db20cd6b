"""The base class of every layer on the engine."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor, nn

from doratune.engine.norm_cache import NormCache
from doratune.functional import DropoutForm
from doratune.peft._internals import LoraLayer, adapter_modules, base_of, dropout_of, must_be_called


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
    """That the engine computes an adapter, for as long as the layer's weights and modules are the same.

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

    @staticmethod
    def adapter_obstacle(layer: Any, name: str) -> str | None:
        """Why the engine cannot compute the adapter ``name`` of a layer of this kind; None if it can.

        Args:
            layer: A layer of ``peft_class``, on the engine or not.
            name: One of its adapters.
        """
        raise NotImplementedError

    def adapter_norm(self, adapter: str) -> Tensor:
        """The norm that a DoRA adapter's magnitude is divided by, (d_out,), float32 or float64, detached."""
        raise NotImplementedError

    def dense_weights(self, adapter: str) -> tuple[Tensor, Tensor, Tensor] | None:
        """W, A and B of an adapter if all are stored as matrices; else None."""
        return None

    def adapter_on_engine(self) -> str | None:
        """The one active adapter if the engine can compute it, else None."""
        decision: Decision | None = self.norms.decision
        if (
            decision is None
            or torch.compiler.is_compiling()
            or self._disable_adapters
            or self.merged_adapters
            or self._active_adapter != decision.active
            or decision.adapter not in self.scaling
            or must_be_called(*decision.parts)
        ):
            return self._adapter_or_reason()[0]
        return decision.adapter

    def decide(self) -> str | None:
        """``adapter_on_engine``, which calls rely on for as long as the norms are held.

        Such calls still see that an adapter is switched, merged or disabled, and a hook on a part.
        """
        adapter = self.adapter_on_engine()
        if adapter is not None and self.reads_parts:
            active, parts = self._active_adapter, (base_of(self), *adapter_modules(self, adapter))
            active = list(active) if isinstance(active, list) else active
            self.norms.decision = Decision(active, adapter, parts)
        return adapter

    def reason_for_peft(self) -> str | None:
        """Why a call now would run on PEFT's path with any input; None if it would not."""
        return self._adapter_or_reason()[1]

    def _adapter_or_reason(self) -> tuple[str, None] | tuple[None, str]:
        if self.disable_adapters:
            return None, "adapters disabled"
        if self.merged_adapters:
            return None, "adapter merged"
        active = [name for name in self.active_adapters if name in self.scaling]
        if len(active) != 1:
            return None, "several active adapters" if active else "no active adapter"
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
    layer.__class__ = engine_class
    layer.norms = NormCache()
    layer.engine_options = options


def release(layer: Any) -> None:
    """Return a layer to PEFT, in place."""
    del layer.norms, layer.engine_options
    layer.__class__ = layer.peft_class
