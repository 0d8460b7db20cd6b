"""The new values of a base model's parameters, one at a time, and what rounding takes from them."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from doratune.records.serving import RoundingRecord
from doratune.serving.adapted import AdaptedBase
from doratune.serving.model_folder import rounded

PART = 1 << 22
"""Elements of a weight at a time, where norms are computed."""


class MergedWeights:
    """The parameters of a base model with its adapter merged into it.

    Args:
        opened: The adapter on its base.

    Attributes:
        changed: The parameters whose values are not those of the base's files. Of parameters that are one in
            the base, all are named if one changes.
        untied: Of these, those that need a tensor for themselves.
    """

    def __init__(self, opened: AdaptedBase) -> None:
        self._opened = opened
        self._layers = {one.parameter: one for one in opened.layers()}
        self._biases = {one.bias: one for one in opened.layers() if one.bias}
        self._replaced = opened.replaced()
        self._lost: dict[str, tuple[float, float]] = {}
        seen = opened.dequantised.parameters if opened.dequantised else frozenset[str]()
        changed = {*self._layers, *self._biases, *self._replaced, *seen}
        tied = {name: other for name, other in opened.tied.items() if name in changed or other in changed}
        self.untied = frozenset(
            name
            for name, other in tied.items()
            if not (name in changed and other in changed) or not self.value(name).equal(self.value(other))
        )
        self.changed = frozenset(changed | tied.keys())

    def value(self, name: str) -> Tensor:
        """A parameter's value, float32."""
        W = self._replaced[name] if name in self._replaced else self._opened.weight(name)
        if name in self._layers:
            return self._layers[name].merged(W.float())
        return self._biases[name].merged_bias(W.float()) if name in self._biases else W.float()

    def rounded(self, name: str, dtype: torch.dtype) -> Tensor:
        """A parameter's value, rounded once to ``dtype``.

        Raises:
            InputError: It is too large for it.
        """
        new = self.value(name)
        result = rounded(new, dtype, name)
        if name in self._layers or name in self._biases or name in self._replaced:
            before = self._opened.weight(name)
            parts = [one.reshape(-1).split(PART) for one in (before, new, result)]
            lost = moved = 0.0
            for old, exact, short in zip(*parts, strict=True):
                moved += (exact.double() - old.double()).square().sum().item()
                lost += (short.double() - exact.double()).square().sum().item()
            self._lost[name] = (lost, moved)
        return result

    def rounding(self) -> RoundingRecord | None:
        """What rounding took from the updates of all parameters rounded so far; None if none moved."""
        shares = {name: math.sqrt(lost / moved) for name, (lost, moved) in self._lost.items() if moved}
        if not shares:
            return None
        lost, moved = (sum(part) for part in zip(*self._lost.values(), strict=True))
        worst = max(shares, key=shares.__getitem__)
        return RoundingRecord(overall=math.sqrt(lost / moved), worst=shares[worst], parameter=worst)
