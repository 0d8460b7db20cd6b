"""Which tensors of a model's files become which of its parameters, as transformers loads them.

Most keep their name. Some files leave out the base model's prefix, some architectures were renamed since
their files were written, and transformers 5 fuses the experts of a layer into one parameter.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

from torch import Tensor
from transformers import PreTrainedModel

from doratune.models._internals import conversions, renamed


@dataclass(frozen=True)
class Source:
    """Where a parameter comes from.

    Attributes:
        keys: The names of the files' tensors, in the order in which they are put together.
    """

    keys: tuple[str, ...]

    @property
    def key(self) -> str | None:
        """The tensor in the files that is this parameter as it is; None if it is put together from others."""
        return self.keys[0]

    def read(self, name: str, tensor: Callable[[str], Tensor]) -> Tensor:
        """The parameter's values.

        Args:
            name: Its name.
            tensor: Reads a tensor of the files.
        """
        return tensor(self.keys[0])


@dataclass(frozen=True)
class Converted(Source):
    """A parameter that transformers computes from the files' tensors.

    Attributes:
        patterns: The converter's pattern for each key.
        converter: transformers' own.
        model: The model, whose configuration some converters read.
    """

    patterns: tuple[str, ...]
    converter: Any
    model: PreTrainedModel

    @property
    def key(self) -> str | None:
        """None."""
        return None

    def read(self, name: str, tensor: Callable[[str], Tensor]) -> Tensor:
        """The parameter's values; see ``Source``."""
        converter = copy.deepcopy(self.converter)
        for key, pattern in zip(self.keys, self.patterns, strict=True):
            converter.add_tensor(name, key, pattern, tensor(key))
        found = converter.convert(self.first_target(name), model=self.model, config=self.model.config)[name]
        return found[0] if isinstance(found, list) else found

    def first_target(self, name: str) -> str:
        """The name that transformers gives to all that this converter makes."""
        first, *others = self.converter.target_patterns
        one = next((one for one in others if one in name), first)
        return name.replace(one, first)


def sources(model: PreTrainedModel, keys: Iterable[str]) -> dict[str, Source]:
    """The source of each parameter that the files hold.

    Args:
        model: The model; only its names and its configuration are read.
        keys: The names of the files' tensors.
    """
    renamings, converters = conversions(model)
    by_pattern = {pattern: one for one in converters for pattern in one.source_patterns}
    state, prefix = model.state_dict(), model.base_model_prefix
    parts: dict[str, list[tuple[str, str]]] = {}
    found: dict[str, Source] = {}
    for key in sorted(keys, key=_natural):
        name, pattern = renamed(key, renamings, converters, prefix, state)
        if name not in state:  # a name that the mapping of an older architecture would change
            own, _ = renamed(key, [], [], prefix, state)
            name, pattern = (own, None) if own in state else (name, pattern)
        if pattern is None:
            found[name] = Source((key,))
        else:
            parts.setdefault(name, []).append((key, pattern))
    for first, pairs in parts.items():
        keys_of, patterns = zip(*pairs, strict=True)
        converter = by_pattern[patterns[0]]
        for target in converter.target_patterns:
            name = first.replace(converter.target_patterns[0], target)
            found[name] = Converted(keys_of, patterns, converter, model)
    return found


def _natural(key: str) -> list[tuple[int, int | str]]:
    """Sorts expert 2 before expert 10."""
    return [(0, int(part)) if part.isdigit() else (1, part) for part in key.split(".")]
