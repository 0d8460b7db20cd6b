"""Counts the bytes of the tensors that are alive while code runs, and remembers them at their highest.

Tensors without content (``FakeTensor``) count like others, so this tells what a computation would need without
the memory or the time for it.
"""

from __future__ import annotations

import weakref
from collections import Counter, defaultdict
from dataclasses import dataclass
from typing import Any

from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode


class LiveBytes(TorchDispatchMode):
    """Inside, every storage that an operation creates is counted until it is freed.

    Args:
        known: Tensors that existed before, which are not counted.

    Attributes:
        phase: The name under which new storages are counted; set it as the computation proceeds.
        live: Bytes now, by phase.
        peaks: Bytes by phase when most were alive, for each phase in which something was created.
    """

    def __init__(self, known: list[Tensor]) -> None:
        super().__init__()
        self.phase = ""
        self.live: Counter[str] = Counter()
        self.peaks: defaultdict[str, Counter[str]] = defaultdict(Counter)
        self._entries: weakref.WeakKeyDictionary[Any, _Entry] = weakref.WeakKeyDictionary()
        for one in known:
            self._entries[one.untyped_storage()] = _Entry(0, "")

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run an operation and count what it returns."""
        outcome = func(*args, **(kwargs or {}))
        for one in outcome if isinstance(outcome, tuple | list) else (outcome,):
            if isinstance(one, Tensor):
                self._count(one)
        return outcome

    def relabel(self, tensor: Tensor, phase: str) -> None:
        """Count a tensor's storage under another name from now on."""
        entry = self._entries[tensor.untyped_storage()]
        self.live[entry.phase] -= entry.size
        self.live[phase] += entry.size
        entry.phase = phase

    def _count(self, tensor: Tensor) -> None:
        storage = tensor.untyped_storage()
        if storage in self._entries:
            return
        entry = self._entries[storage] = _Entry(storage.nbytes(), self.phase)
        self.live[entry.phase] += entry.size
        weakref.finalize(storage, self._free, entry)
        if self.live.total() > self.peaks[self.phase].total():
            self.peaks[self.phase] = self.live.copy()

    def _free(self, entry: _Entry) -> None:
        self.live[entry.phase] -= entry.size


@dataclass
class _Entry:
    """The size of a storage in bytes, and the name under which it is counted."""

    size: int
    phase: str
