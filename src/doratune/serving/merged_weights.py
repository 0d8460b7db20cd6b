"""The parameters of a base model, and what an adapter makes of them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

from doratune.peft.merge_layer import base_parameters
from doratune.serving.adapted import AdaptedBase, AdaptedLayer


@dataclass(frozen=True)
class Change:
    """A parameter that an adapter changes.

    Attributes:
        shape: Its shape in the model.
        values: Computes its new values.
    """

    shape: tuple[int, ...]
    values: Callable[[], Tensor]


class MergedWeights:
    """The parameters of a base model with an adapter merged into it, computed one at a time.

    Args:
        adapted: The base and the adapter.

    Attributes:
        changes: The parameters that the adapter changes, by their names in the base model; one and the same
            for two that are still tied.
        names: All parameters; of those that are one in the base model, only the one that counts.
    """

    def __init__(self, adapted: AdaptedBase) -> None:
        self._adapted = adapted
        self.changes: dict[str, Change] = {}
        for layer in adapted.layers():
            self._add(layer.parameter, _weight(layer))
            if layer.bias is not None:
                self._add(layer.bias, _bias(adapted, layer, layer.bias))
        replaced = adapted.replaced()
        for name, values in replaced.items():
            self._add(name, lambda values=values: values)
        for name in adapted.tied.keys() & replaced.keys():
            if replaced[name] is replaced.get(adapted.tied[name]):
                self.changes[name] = self.changes[adapted.tied[name]]
        self.names = sorted({name for name, _ in base_parameters(adapted.model)} - adapted.tied.keys())

    def base(self, name: str) -> Tensor:
        """A parameter of the base model, in the type of its file."""
        return self._adapted.files.rows(self._adapted.tied.get(name, name))

    def merged(self, name: str) -> Tensor:
        """The parameter with the adapter."""
        return self.changes[name].values() if name in self.changes else self.base(name)

    def _add(self, name: str, values: Callable[[], Tensor]) -> None:
        tied = self._adapted.tied
        self.changes[name] = Change(self._adapted.files.shape(tied.get(name, name)), values)


def _weight(layer: AdaptedLayer) -> Callable[[], Tensor]:
    return lambda: layer.merged(layer.weight())


def _bias(adapted: AdaptedBase, layer: AdaptedLayer, name: str) -> Callable[[], Tensor]:
    return lambda: layer.merged_bias(adapted.weight(name).float())
