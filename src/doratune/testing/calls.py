"""Counts the calls of PEFT's LoRA layers that the engine computed, and why others were left to PEFT."""

from __future__ import annotations

import functools
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch

from doratune.peft import LayerCalls
from doratune.peft._internals import LoraLayer
from doratune.peft.enable import layer_obstacle, peft_class
from doratune.peft.layer import MORE_ARGUMENTS, UNFIT_INPUT, EngineLayer


def lines(calls: LayerCalls) -> list[str]:
    """A line with the totals, then the counts, largest first."""
    if not calls.engine and not calls.left:
        return ["no LoRA or DoRA layer was called"]
    taken = [f"{count} {kind} on the engine" for kind, count in calls.engine.most_common()]
    left = [f"{count} {kind} left to PEFT: {why}" for (kind, why), count in calls.left.most_common()]
    total = f"{calls.engine.total()} layer calls on the engine, {calls.left.total()} left to PEFT"
    return [total, *(f"  {line}" for line in [*taken, *left])]


@dataclass
class _Call:
    layer: LoraLayer
    pefts: bool = False
    """Whether the call reached a forward method of PEFT."""


class CallCounter:
    """Counts between ``start`` and ``stop``, by wrapping the forward method of every LoRA layer class.

    Attributes:
        calls: The counts so far.
    """

    def __init__(self) -> None:
        self.calls = LayerCalls()
        self._wrapped: dict[type, Callable[..., Any]] = {}
        self._local = threading.local()  # torch.nn.DataParallel calls layers from several threads

    def start(self) -> None:
        """Wrap the existing classes; another call wraps those defined since."""
        for kind in _classes(LoraLayer):
            if "forward" in vars(kind) and kind not in self._wrapped:
                self._wrapped[kind] = vars(kind)["forward"]
                kind.forward = self._counting(kind, self._wrapped[kind])

    def stop(self) -> None:
        """Restore the classes' own methods."""
        while self._wrapped:
            kind, forward = self._wrapped.popitem()
            setattr(kind, "forward", forward)  # noqa: B010 - no class in general has one

    def _counting(self, kind: type, forward: Callable[..., Any]) -> Callable[..., Any]:
        pefts = not issubclass(kind, EngineLayer)

        @functools.wraps(forward)
        def counted(layer: LoraLayer, *args: Any, **kwargs: Any) -> Any:
            if torch.compiler.is_compiling():
                return forward(layer, *args, **kwargs)
            open_calls = self._open_calls()
            if open_calls and open_calls[-1].layer is layer:  # the engine's class calls PEFT's
                open_calls[-1].pefts |= pefts
                return forward(layer, *args, **kwargs)
            call = _Call(layer, pefts)
            reason = _reason(layer, args, kwargs)
            open_calls.append(call)
            try:
                output = forward(layer, *args, **kwargs)
            finally:
                open_calls.pop()
            self._count(call, reason)
            return output

        return counted

    def _open_calls(self) -> list[_Call]:
        if not hasattr(self._local, "calls"):
            self._local.calls = []
        return self._local.calls

    def _count(self, call: _Call, reason: str) -> None:
        layer = call.layer
        name = peft_class(layer).__name__
        if call.pefts:
            self.calls.left[name, reason] += 1
        else:
            self.calls.engine[name] += 1


def _classes(kind: type) -> Iterator[Any]:
    """All classes below ``kind``."""
    for one in kind.__subclasses__():
        yield one
        yield from _classes(one)


def _reason(layer: LoraLayer, args: tuple[Any, ...], kwargs: dict[str, Any]) -> str:
    """Why PEFT computes a call, if it does."""
    if not isinstance(layer, EngineLayer):
        return layer_obstacle(layer) or "not built by one of PEFT's models"
    reason = layer.reason_for_peft()
    if reason is None and (len(args) > 1 or kwargs):
        return MORE_ARGUMENTS + (f": {', '.join(kwargs)}" if kwargs else "")
    return reason or UNFIT_INPUT
