"""Keeps track of what was replaced in a model, undoes it and reports it."""

from __future__ import annotations

import types
from collections import Counter, defaultdict
from collections.abc import Callable, Hashable
from dataclasses import dataclass
from typing import Any

from torch import nn

from doratune.errors import DoratuneError
from doratune.records.run import SpeedupRecord

_ABSENT: Any = object()


class Changes:
    """The forward passes replaced so far, and the modules left alone."""

    def __init__(self) -> None:
        self.taken: Counter[str] = Counter()
        self.left: defaultdict[str, Counter[str]] = defaultdict(Counter)
        self._replaced: list[tuple[nn.Module, Any, Any]] = []
        self._verdicts: dict[Hashable, str | None] = {}
        self._on_undo: list[Callable[[], object]] = []

    def take(self, part: str, count: int = 1) -> None:
        """Count modules that a speed-up applies to."""
        self.taken[part] += count

    def leave(self, part: str, reason: str, count: int = 1) -> None:
        """Count modules that a speed-up left alone."""
        self.left[part][reason] += count

    def replace(self, part: str, module: nn.Module, forward: Callable[..., Any]) -> None:
        """Give a module another forward pass.

        Args:
            part: The speed-up, for which the module is counted.
            module: Any module.
            forward: A function whose first argument is the module.
        """
        self.take(part)
        method = types.MethodType(forward, module)
        self._replaced.append((module, vars(module).get("forward", _ABSENT), method))
        module.forward = method

    def decide(
        self,
        part: str,
        module: nn.Module,
        forward: Callable[..., Any],
        key: Hashable,
        check: Callable[[], Any],
    ) -> None:
        """Replace a module's forward pass if a check passes; otherwise leave the module alone.

        Args:
            part: The speed-up.
            module: Any module.
            forward: A function whose first argument is the module.
            key: Modules with the same key are checked once.
            check: Returns why the module is left alone, or None.
        """
        if (part, key) not in self._verdicts:
            self._verdicts[part, key] = check()
        reason = self._verdicts[part, key]
        if reason is None:
            self.replace(part, module, forward)
        else:
            self.leave(part, reason)

    def report(self) -> SpeedupReport:
        """The report on all changes so far."""
        names = dict.fromkeys((*self.taken, *self.left))
        left = {name: dict(self.left[name]) for name in names}
        return SpeedupReport({name: self.taken[name] for name in names}, left, self)

    def on_undo(self, restore: Callable[[], object]) -> None:
        """Have ``undo`` call a function before it restores the forward passes."""
        self._on_undo.append(restore)

    def undo(self) -> None:
        """Restore everything.

        Raises:
            DoratuneError: Other code has replaced one of the forward passes since; nothing is restored.
        """
        latest = {id(module): (module, method) for module, _, method in self._replaced}
        for module, method in latest.values():
            if vars(module).get("forward") is not method:
                raise DoratuneError(
                    "a speed-up cannot be undone: other code has replaced the forward pass since",
                    where=type(module).__name__,
                    fix="undo that replacement first",
                )
        while self._on_undo:
            self._on_undo.pop()()
        while self._replaced:
            module, before, _ = self._replaced.pop()
            if before is _ABSENT:
                del module.forward
            else:
                module.forward = before


@dataclass(frozen=True)
class SpeedupReport:
    """What ``speed_up`` did to a model; ``str`` gives it in one line.

    Attributes:
        taken: How many modules each speed-up applies to, by its name; 1 if it concerns the whole model.
        left: How many modules each speed-up left alone, by its name and the reason.
        changes: What ``undo`` restores.
    """

    taken: dict[str, int]
    left: dict[str, dict[str, int]]
    changes: Changes

    def undo(self) -> None:
        """Restore every forward pass and the attention implementation.

        Raises:
            DoratuneError: Other code has replaced one of the forward passes since; nothing is restored.
        """
        self.changes.undo()

    def record(self) -> list[SpeedupRecord]:
        """The report as it is stored in record.json."""
        return [
            SpeedupRecord(name=name, taken=count, left=self.left[name]) for name, count in self.taken.items()
        ]

    def __str__(self) -> str:
        return "; ".join(map(self._line, self.taken)) or "none"

    def _line(self, name: str) -> str:
        reasons = ", ".join(f"{count} left ({reason})" for reason, count in self.left[name].items())
        return f"{name} {self.taken[name]}" + (f", {reasons}" if reasons else "")
