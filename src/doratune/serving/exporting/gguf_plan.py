"""Which tensors of the base's GGUF file an adapter changes, and what becomes of each."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

import numpy as np
from gguf import GGMLQuantizationType
from torch import Tensor

from doratune.errors import InputError, first_of
from doratune.serving.exporting.gguf_file import Floats, GgufFile
from doratune.serving.exporting.gguf_layout import EMBEDDING, EXTRA, HEAD, Layout
from doratune.serving.exporting.gguf_types import WRITTEN, fits, largest_rounding
from doratune.serving.exporting.gguf_writer import Computed, Copied, GgufPlan

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Change:
    """A parameter that an adapter changes.

    Attributes:
        shape: Its shape in the model.
        values: Computes its new values, float32.
    """

    shape: tuple[int, ...]
    values: Callable[[], Tensor]


@dataclass(frozen=True)
class Types:
    """What the user says about the types of changed matrices.

    Attributes:
        dtype: The type of all of them; None: the one they have.
        requantise: The type of those whose own is not written; None: refuse them.
    """

    dtype: str | None = None
    requantise: str | None = None


def plan_gguf(
    file: GgufFile, layout: Layout, changes: Mapping[str, Change], types: Types, *, untied: bool = False
) -> GgufPlan:
    """Decide which tensors are copied and which are computed.

    Args:
        file: The base's GGUF file.
        layout: The arrangement of the base model's parameters.
        changes: The parameters that the adapter changes, by their names in the base model.
        types: What the user says about types.
        untied: Whether the embedding and the head are one in the base, and no longer with the adapter.

    Returns:
        The plan of the new file, in the order of the old one.

    Raises:
        InputError: The file is of another architecture or has other shapes, a changed parameter has no place
            in it, or a changed tensor has a type that is not written.
    """
    find = layout.tensors(file)
    placed = {tensor: name for name in changes if (tensor := find(name)) is not None}
    sources = {name: name for name in file.names}
    if untied and HEAD not in file.names:
        logger.info("the base's head is its embedding; with this adapter they differ, so the file has both")
        sources[HEAD] = EMBEDDING
    if lost := sorted(changes.keys() - {name for tensor, name in placed.items() if tensor in sources}):
        raise InputError(
            "the adapter changes weights that have no place in the GGUF file",
            where=str(file.path),
            got=f"{len(lost)}: {first_of(lost)}",
            fix="merge into a folder instead (doratune merge)",
        )
    computed = {
        tensor: _computed(file, layout, name, changes[name], tensor, sources[tensor], types)
        for tensor, name in placed.items()
    }
    _refuse_types(file, computed, types)
    return GgufPlan(file, [computed.get(name) or Copied(name, one) for name, one in sources.items()])


def _computed(
    file: GgufFile, layout: Layout, name: str, change: Change, tensor: str, source: str, types: Types
) -> Computed:
    shape = layout.shape(name, change.shape)
    if shape != file.shape(source):
        raise _other_shape(file, name, shape, source)
    arrange = layout.arrange(name)
    return Computed(
        tensor,
        shape,
        _type(file.type(source), shape, types),
        lambda: arrange(change.values().float().numpy()),
    )


def _type(own: GGMLQuantizationType, shape: tuple[int, ...], types: Types) -> GGMLQuantizationType:
    if len(shape) == 1:  # llama.cpp wants norms and biases as they are, in F32
        return own
    chosen = types.dtype or (types.requantise if own.name not in WRITTEN else None)
    return own if chosen is None else GGMLQuantizationType[chosen]


def _refuse_types(file: GgufFile, computed: Mapping[str, Computed], types: Types) -> None:
    """Refuse types that are not written, and rows that do not fit their type."""
    if unwritten := [one for one in computed.values() if one.type.name not in WRITTEN]:
        kinds = sorted({one.type.name for one in unwritten})
        raise InputError(
            f"the adapter changes tensors of a type that is not written ({', '.join(kinds)})",
            where=str(file.path),
            got=f"{len(unwritten)}: {first_of([one.name for one in unwritten])}",
            expected=f"one of {', '.join(WRITTEN)}",
            fix="add --requantize Q8_0 for these, or --dtype with a type for all that the adapter changes",
        )
    if long := [one for one in computed.values() if not fits(one.shape, one.type)]:
        raise InputError(
            f"rows of some tensors cannot be stored in {long[0].type.name}, which takes blocks of 32 values",
            where=str(file.path),
            got=f"{len(long)}: {first_of([f'{one.name} {one.shape}' for one in long])}",
            fix="add --dtype F16, BF16 or F32",
        )


@dataclass(frozen=True)
class FileDifference:
    """How far a GGUF file's tensors are from the base model's weights, relative to their Frobenius norm.

    Attributes:
        overall: Of all weights.
        largest: Of the tensor that is farthest.
        tensor: Its name.
    """

    overall: float
    largest: float
    tensor: str


def compare_with_base(
    file: GgufFile, layout: Layout, parameters: Iterable[str], weight: Callable[[str], Tensor]
) -> FileDifference:
    """Compare a GGUF file with the weights of the base model.

    Args:
        file: The file.
        layout: The arrangement of the base model's parameters.
        parameters: Their names, with that of the head only if it is not the embedding.
        weight: Returns the values of one.

    Raises:
        InputError: The file holds other tensors, or one of another shape, or one that differs by more than
            rounding to its type does.
    """
    squares = total = largest = 0.0
    farthest, wrong = "", []
    for name, tensor in _pairs(file, layout, parameters):
        known = weight(name)
        expected, got = layout.arrange(name)(known.float().numpy()), file.values(tensor)
        if expected.shape != got.shape:
            raise _other_shape(file, name, expected.shape, tensor)
        apart, norm = _square(got - expected), _square(expected)
        squares, total = squares + apart, total + norm
        relative = math.sqrt(apart / norm) if norm else (math.inf if apart else 0.0)
        if relative > largest:
            largest, farthest = relative, tensor
        limit = largest_rounding(file.type(tensor), known.dtype)
        if not relative <= limit:
            wrong.append((relative / limit, relative, limit, tensor))
    if wrong:
        _, relative, limit, tensor = max(wrong)
        raise _other_model(
            file,
            got=f"{len(wrong)} tensors that differ, {tensor} ({file.type(tensor).name}) by {relative:.2g} "
            "of its norm",
            expected=f"at most {limit:.2g}, which rounding to that type can do",
        )
    return FileDifference(math.sqrt(squares / total) if total else 0.0, largest, farthest)


def _pairs(file: GgufFile, layout: Layout, parameters: Iterable[str]) -> list[tuple[str, str]]:
    """Each parameter with its tensor; the head is the embedding in a file that has no other."""
    find = layout.tensors(file)
    pairs = [(name, find(name)) for name in sorted(parameters)]
    pairs = [(name, EMBEDDING if one == HEAD and HEAD not in file.names else one) for name, one in pairs]
    if absent := [name for name, one in pairs if one not in file.names]:
        raise _other_model(file, got=f"no tensor for {first_of(absent)}")
    extra = set(file.names) - {one for _, one in pairs} - EXTRA
    if extra:
        raise _other_model(file, got=f"tensors that the base model does not have: {first_of(sorted(extra))}")
    return [(name, one) for name, one in pairs if one is not None]


def _other_model(file: GgufFile, *, got: str, expected: str | None = None) -> InputError:
    return InputError(
        "the GGUF file is another model than the base that the adapter was trained on",
        where=str(file.path),
        got=got,
        expected=expected,
        fix="name the base model's GGUF file with --base-gguf",
    )


def _other_shape(file: GgufFile, name: str, shape: tuple[int, ...], tensor: str) -> InputError:
    return InputError(
        "a tensor of the GGUF file has another shape than the base model's weight",
        where=str(file.path),
        got=f"{tensor} {file.shape(tensor)}",
        expected=f"{shape}, for {name}",
        fix="name the base model's GGUF file with --base-gguf",
    )


def _square(values: Floats) -> float:
    return float(np.vdot(values, values))
