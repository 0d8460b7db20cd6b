"""Writing a GGUF file from another one's metadata and tensors, one tensor in memory at a time."""

from __future__ import annotations

import math
import struct
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from gguf import GGML_QUANT_VERSION, GGMLQuantizationType, GGUFValueType

from doratune.serving.exporting.gguf_file import HEADER, Floats, GgufFile
from doratune.serving.exporting.gguf_types import FLOATS, WRITTEN, stored_bytes, stored_in

FILE_TYPE, QUANTISATION = "general.file_type", "general.quantization_version"
COPIED = 1 << 24
"""Bytes that are copied at a time."""


@dataclass(frozen=True)
class Copied:
    """A tensor to be written as it is in the base's file.

    Attributes:
        name: Its name in the new file.
        source: The one in the base's file.
    """

    name: str
    source: str


@dataclass(frozen=True)
class Computed:
    """A tensor to be written with other values.

    Attributes:
        name: Its name.
        shape: Rows first.
        type: How its values are stored.
        values: Computes them, as the file arranges them.
    """

    name: str
    shape: tuple[int, ...]
    type: GGMLQuantizationType
    values: Callable[[], Floats]


class GgufPlan:
    """What a new GGUF file consists of.

    Args:
        base: The file whose metadata is copied.
        tensors: The tensors, in the order in which they are written.
    """

    def __init__(self, base: GgufFile, tensors: Sequence[Copied | Computed]) -> None:
        self.base = base
        self.tensors = tensors
        self._head = self._header()

    @property
    def size(self) -> int:
        """The bytes of the file."""
        return len(self._head) + sum(self._padded(self._size(one)) for one in self.tensors)

    def write(self, path: Path) -> None:
        """Write the file.

        Raises:
            InputError: A value does not fit its type.
        """
        with path.open("xb") as file:
            file.write(self._head)
            for one in self.tensors:
                written = sum(file.write(part) for part in self._content(one))
                file.write(bytes(self._padded(written) - written))

    def _content(self, one: Copied | Computed) -> Iterator[bytes]:
        if isinstance(one, Computed):
            yield from stored_in(one.values(), one.type, one.name)
            return
        stored = self.base.stored(one.source)
        for start in range(0, len(stored), COPIED):
            yield stored[start : start + COPIED].tobytes()

    def _header(self) -> bytes:
        """Everything before the first tensor's bytes."""
        infos, at = b"", 0
        for one in self.tensors:
            shape = self._shape(one)
            infos += _text(one.name) + struct.pack("<I", len(shape))
            infos += struct.pack(f"<{len(shape)}Q", *reversed(shape))
            infos += struct.pack("<IQ", self._type(one), at)
            at += self._padded(self._size(one))
        entries, metadata = self._metadata()
        head = HEADER.pack(b"GGUF", self.base.version, len(self.tensors), entries) + metadata + infos
        return head + bytes(self._padded(len(head)) - len(head))

    def _metadata(self) -> tuple[int, bytes]:
        """The number of entries and the base's, with those put right that the new types make untrue."""
        entries, metadata = self.base.entries, bytearray(self.base.metadata)
        label, place = self._file_type(), self.base.place_of(FILE_TYPE)
        if label is not None and place is not None:
            metadata[place : place + 4] = struct.pack("<I", label)
        quantised = any(self._type(one).name not in FLOATS for one in self.tensors)
        if quantised and self.base.place_of(QUANTISATION) is None:  # which the format then requires
            metadata += _text(QUANTISATION) + struct.pack("<II", GGUFValueType.UINT32, GGML_QUANT_VERSION)
            entries += 1
        return entries, bytes(metadata)

    def _file_type(self) -> int | None:
        """The label of the type that most weights now have; None if it is the same as before."""
        before = _most((self.base.type(name), self.base.shape(name)) for name in self.base.names)
        after = _most((self._type(one), self._shape(one)) for one in self.tensors)
        return None if before == after else WRITTEN.get(after.name)

    def _shape(self, one: Copied | Computed) -> tuple[int, ...]:
        return one.shape if isinstance(one, Computed) else self.base.shape(one.source)

    def _type(self, one: Copied | Computed) -> GGMLQuantizationType:
        return one.type if isinstance(one, Computed) else self.base.type(one.source)

    def _size(self, one: Copied | Computed) -> int:
        return stored_bytes(self._shape(one), self._type(one))

    def _padded(self, size: int) -> int:
        return -(-size // self.base.alignment) * self.base.alignment


def _text(text: str) -> bytes:
    encoded = text.encode()
    return struct.pack("<Q", len(encoded)) + encoded


def _most(tensors: Iterable[tuple[GGMLQuantizationType, tuple[int, ...]]]) -> GGMLQuantizationType:
    """The type of most values."""
    values: Counter[GGMLQuantizationType] = Counter()
    for kind, shape in tensors:
        values[kind] += math.prod(shape)
    return values.most_common(1)[0][0]
