"""Notes what became of each LoRA layer's first call, since only a call can tell.

``enable`` sees a model as it is then. Sharding and offloading change it afterwards, and change it again for
the time of each call. So the first call of every layer is noted, and one line says how many ran on the engine
and why the others did not. Later calls are not counted.
"""

from __future__ import annotations

import logging
import weakref
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, nn

from doratune.engine._internals import FakeTensor

_log = logging.getLogger(__name__)

DISABLED, MERGED, NONE_ACTIVE = "adapters disabled", "adapter merged", "no active adapter"
"""Why a layer is computed without its adapter; such a call is not its first."""


@dataclass
class LayerCalls:
    """Counts by the name of PEFT's layer class; calls in graphs of ``torch.compile`` are not seen.

    Attributes:
        engine: Calls that the engine computed.
        left: Calls that were left to PEFT, by class and reason.
        uncalled: Layers that have not been called, where each layer's first call is counted.
    """

    engine: Counter[str] = field(default_factory=Counter)
    left: Counter[tuple[str, str]] = field(default_factory=Counter)
    uncalled: int = 0

    @property
    def reasons(self) -> Counter[str]:
        """The calls that were left to PEFT, by reason."""
        found: Counter[str] = Counter()
        for (_, why), count in self.left.items():
            found[why] += count
        return found

    def __str__(self) -> str:
        on_engine, total = self.engine.total(), self.engine.total() + self.left.total()
        parts = [f"{on_engine} of {total} LoRA and DoRA layers ran on the engine in the first forward pass"]
        parts += [f"{count} on PEFT's path: {why}" for why, count in self.reasons.most_common()]
        if self.uncalled:
            parts.append(f"{self.uncalled} not called yet")
        return "; ".join(parts)


class FirstCalls:
    """The first calls of one model's layers.

    Args:
        layers: The layers on the engine.
        left: How many layers are not, by PEFT's class and the reason.

    Attributes:
        calls: The counts so far.
        complete: Whether a forward pass has been seen to its end.
        listeners: Called with the counts once they are complete; without any, they are logged.
    """

    def __init__(self, layers: Iterable[nn.Module], left: Mapping[tuple[str, str], int]) -> None:
        self.left = dict(left)
        self.calls = LayerCalls(left=Counter(left))
        self.complete = False
        self.listeners: list[Callable[[LayerCalls], object]] = []
        self._layers = weakref.WeakSet(layers)
        self._waiting = weakref.WeakSet(self._layers)
        self._expected = len(self._layers)
        self._first: weakref.ref[nn.Module] | None = None

    def note(self, layer: Any, x: Tensor, reason: str | None) -> None:
        """Note a call of a layer on the engine, until the counts are complete.

        Args:
            layer: The layer.
            x: Its input.
            reason: Why the call is left to PEFT, or None.
        """
        if x.is_meta or isinstance(x, FakeTensor) or reason in (DISABLED, MERGED, NONE_ACTIVE):
            return
        if layer in self._waiting:
            self._waiting.discard(layer)
            self._first = self._first or weakref.ref(layer)
            kind = layer.peft_class.__name__
            if reason is None:
                self.calls.engine[kind] += 1
            else:
                self.calls.left[kind, reason] += 1
            if self._waiting:
                return
        elif self._first is None or self._first() is not layer:
            return
        # All have been called, or a second pass begins and some are not in use.
        self._tell()

    def _tell(self) -> None:
        self.complete, self.calls.uncalled = True, len(self._waiting)
        missed = self.calls.engine.total() + self.calls.uncalled < self._expected
        level = logging.WARNING if missed and not self.listeners else logging.INFO
        _log.log(level, "doratune: %s", self.calls)
        for listener in self.listeners:
            listener(self.calls)

    def covers(self, layers: Iterable[nn.Module], left: Mapping[tuple[str, str], int]) -> bool:
        """Whether these are the layers whose calls are noted."""
        return self._layers == weakref.WeakSet(layers) and self.left == left

    def __reduce__(self) -> tuple[type[None], tuple[()]]:
        return type(None), ()  # the layers of a copied model are not counted


def count_first_calls(layers: Sequence[Any], left: Mapping[tuple[str, str], int]) -> None:
    """Note the first calls of a model's layers, unless that has begun.

    Args:
        layers: Those on the engine.
        left: How many are not, by PEFT's class and the reason.
    """
    known = next((layer.first_calls for layer in layers if layer.first_calls is not None), None)
    if known is None or not known.covers(layers, left):
        known = FirstCalls(layers, left)
    for layer in layers:
        layer.first_calls = known


def first_calls(model: nn.Module) -> LayerCalls | None:
    """How many LoRA and DoRA layers ran on the engine when they were first called, and why others did not.

    Args:
        model: A model that ``enable`` has been called with, or one around it, such as that of DDP.

    Returns:
        The counts; None before the end of the model's first forward pass, and if no layer is on the engine.
    """
    known = counts_of(model)
    return known.calls if known is not None and known.complete else None


def counts_of(model: nn.Module) -> FirstCalls | None:
    """The counts of a model's first calls, complete or not; None if no layer is on the engine."""
    noted = (vars(module).get("first_calls") for module in model.modules())
    return next((one for one in noted if isinstance(one, FirstCalls)), None)
