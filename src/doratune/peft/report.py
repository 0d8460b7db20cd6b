"""What ``enable`` did, as data that reads well in a log."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class EnableReport:
    """How many LoRA layers are on the engine, how many are not, and why.

    Args:
        taken: Layers on the engine, by the name of PEFT's layer class.
        left: Layers on PEFT's own path, by the name of PEFT's layer class and the reason.
    """

    taken: Mapping[str, int]
    left: Mapping[tuple[str, str], int]

    def __str__(self) -> str:
        lines = [f"{_layers(count, kind)} on the engine" for kind, count in self.taken.items()]
        lines += [f"{_layers(count, kind)} on PEFT's path: {why}" for (kind, why), count in self.left.items()]
        return "\n".join(lines)


def _layers(count: int, kind: str) -> str:
    return f"{count} {kind} {'layer' if count == 1 else 'layers'}"
