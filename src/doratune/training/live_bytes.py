"""Counts the bytes of the tensors that are alive while code runs, and remembers them at their highest.

Tensors without content (``FakeTensor``) count like others, so this tells what a computation would need
without the memory or the time for it.
"""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from doratune.models._internals import FakeTensorMode
from doratune.training._internals import FACTORIES, StorageWeakRef, TorchDispatchMode

LARGE = 1 << 20
"""Elements from which a new tensor gets no content. Smaller ones may be read, such as those of indices."""


class LiveBytes(TorchDispatchMode):
    """Inside, every storage that an operation creates is counted until it is freed.

    Args:
        fake: Large new tensors get no content either.
        known: Tensors that existed before, which are not counted.

    Attributes:
        phase: The name under which new storages are counted; set it as the computation proceeds.
        live: Bytes now, by phase.
        peaks: Bytes by phase when most were alive, for each phase in which something was created.
    """

    def __init__(self, fake: FakeTensorMode, known: list[Tensor]) -> None:
        super().__init__()
        self._fake = fake
        self.phase = ""
        self.live: Counter[str] = Counter()
        self.peaks: defaultdict[str, Counter[str]] = defaultdict(Counter)
        self._entries: dict[StorageWeakRef, _Entry] = {}
        for one in known:
            self._entries[StorageWeakRef(one.untyped_storage())] = _Entry(0, "")

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run an operation and count what it returns."""
        with self._fake if func in FACTORIES and _is_large(args[0]) else nullcontext():
            outcome = func(*args, **(kwargs or {}))
        for one in outcome if isinstance(outcome, tuple | list) else (outcome,):
            if isinstance(one, Tensor):
                self._count(one)
        return outcome

    def relabel(self, tensor: Tensor, phase: str) -> None:
        """Count a tensor's storage under another name from now on."""
        entry = self._entries[StorageWeakRef(tensor.untyped_storage())]
        self.live[entry.phase] -= entry.size
        self.live[phase] += entry.size
        entry.phase = phase

    def _count(self, tensor: Tensor) -> None:
        storage = tensor.untyped_storage()
        reference = StorageWeakRef(storage)
        if reference in self._entries:
            return
        for key in [key for key in self._entries if key.expired()]:
            freed = self._entries.pop(key)
            self.live[freed.phase] -= freed.size
        entry = _Entry(storage.nbytes(), self.phase)
        self._entries[reference] = entry
        self.live[entry.phase] += entry.size
        if self.live.total() > self.peaks[self.phase].total():
            self.peaks[self.phase] = self.live.copy()


def _is_large(shape: Sequence[int] | int) -> bool:
    """Whether a tensor is large; ``eye`` has a number instead of a shape."""
    return (shape**2 if isinstance(shape, int) else math.prod(shape)) >= LARGE


@dataclass
class _Entry:
    """The size of a storage in bytes, and the name under which it is counted."""

    size: int
    phase: str
