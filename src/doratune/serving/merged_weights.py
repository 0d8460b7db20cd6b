"""The new values of a base model's parameters, one at a time, and what rounding takes from them."""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
from torch import Tensor

from doratune.errors import InputError, first_of
from doratune.records.serving import RoundingRecord
from doratune.serving.adapted import AdaptedBase
from doratune.serving.model_folder import rounded

PART = 1 << 20
"""Elements of a weight at a time, where norms are computed."""


class MergedWeights:
    """The parameters of a base model with its adapter merged into it.

    Args:
        opened: The adapter on its base.

    Attributes:
        computed: The parameters that the adapter or dequantisation gives new values.
        changed: The parameters whose values are not those of the base's files. Of parameters that are one in
            the base, all are named if one changes.
        untied: Of these, those that need a tensor for themselves.

    Raises:
        InputError: The run's method says that it merges into nothing, or a bias to change is missing.
    """

    def __init__(self, opened: AdaptedBase) -> None:
        _refuse_unmergeable(opened)
        self._opened = opened
        self._layers = {one.parameter: one for one in opened.layers()}
        self._biases = {one.bias: one for one in opened.layers() if one.bias}
        _refuse_missing_biases(opened)
        self._replaced = opened.replaced()
        self._lost: dict[str, tuple[float, float]] = {}
        seen = opened.dequantised.parameters if opened.dequantised else frozenset[str]()
        changed = self.computed = frozenset({*self._layers, *self._biases, *self._replaced, *seen})
        tied = {name: other for name, other in opened.tied.items() if name in changed or other in changed}
        self.untied = frozenset(
            name
            for name, other in tied.items()
            if not (name in changed and other in changed) or not self.value(name).equal(self.value(other))
        )
        self.changed = frozenset(changed | tied.keys())

    def value(self, name: str) -> Tensor:
        """A parameter's value, float32."""
        return self._filled(name, torch.float32)

    def rounded(self, name: str, dtype: torch.dtype) -> Tensor:
        """A parameter's value, rounded once to ``dtype``.

        Raises:
            InputError: It is too large for it.
        """
        sums = torch.zeros(2, dtype=torch.float64)
        result = self._filled(name, dtype, sums)
        if name in self._layers or name in self._biases or name in self._replaced:
            self._lost[name] = sums[0].item(), sums[1].item()
        return result

    def _filled(self, name: str, dtype: torch.dtype, sums: Tensor | None = None) -> Tensor:
        """A parameter's value; adds the squares of what rounding and the adapter moved to ``sums``."""
        before = self._opened.weight(name)
        result = torch.empty(before.shape, dtype=dtype)
        for place, exact in self._parts(name, before):
            result[place] = rounded(exact, dtype, name)
            if sums is not None:
                parts = [one.reshape(-1).split(PART) for one in (before[place], exact, result[place])]
                for old, new, short in zip(*parts, strict=True):
                    sums[0] += (short.double() - new.double()).square().sum()
                    sums[1] += (new.double() - old.double()).square().sum()
        return result

    def _parts(self, name: str, before: Tensor) -> Iterator[tuple[tuple[slice, ...], Tensor]]:
        """The exact value in parts, float32, with their places."""
        W = self._replaced.get(name, before)
        if name in self._layers:
            yield from self._layers[name].merged_parts(W)
        elif name in self._biases:
            yield (slice(None),), self._biases[name].merged_bias(W.float())
        else:
            step = max(1, PART * len(W) // max(1, W.numel()))
            for start in range(0, len(W), step):
                place = (slice(start, start + step),)
                yield place, W[place].float()

    def rounding(self) -> RoundingRecord | None:
        """What rounding took from the updates of all parameters rounded so far; None if none moved."""
        shares = {name: math.sqrt(lost / moved) for name, (lost, moved) in self._lost.items() if moved}
        if not shares:
            return None
        lost, moved = (sum(part) for part in zip(*self._lost.values(), strict=True))
        worst = max(shares, key=shares.__getitem__)
        return RoundingRecord(overall=math.sqrt(lost / moved), worst=shares[worst], parameter=worst)


def _refuse_unmergeable(opened: AdaptedBase) -> None:
    """Refuse a run whose own method says that PEFT's merge is not what was trained."""
    record = opened.record
    if record is not None and (record.definition or {}).get("merges") == "nothing":
        raise InputError(
            "the run's method says that it merges into nothing",
            where=opened.target,
            got=f"merges: nothing, in the file of the method {record.method}",
            fix="load the adapter on its base with PEFT; if it can be merged after all, train again with "
            "merges: base or changed-base",
        )


def _refuse_missing_biases(opened: AdaptedBase) -> None:
    """Refuse an adapter whose bias (``lora_bias``) would need one that the base's layer does not have."""
    missing = [
        bias
        for one in opened.layers()
        if (bias := one.bias) is not None and one.layer.get_base_layer().bias is None
    ]
    if missing:
        raise InputError(
            "the adapter cannot be merged: its layers have a bias, and those of the base model have none",
            where=str(opened.adapter),
            got=first_of(missing),
            fix="use base and adapter apart, as doratune eval does",
        )
