"""Reading a GGUF file: its metadata as bytes, and its tensors one at a time."""

from __future__ import annotations

import struct
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from gguf import GGMLQuantizationType, GGUFReader, dequantize
from numpy.typing import NDArray

from doratune.errors import InputError

HEADER = struct.Struct("<4sIQQ")
"""Magic, version, number of tensors, number of metadata entries."""
Floats = NDArray[np.float32]


class GgufFile:
    """A GGUF file, of which only the header is in memory.

    Args:
        path: The file.
        where: Where the user named it, for the message.

    Raises:
        InputError: There is no such file, it is not a GGUF file, is not complete, or is one part of a model.
    """

    def __init__(self, path: Path, *, where: str = "--base-gguf") -> None:
        self.path = path
        if not path.is_file():
            raise InputError("there is no such GGUF file", where=where, got=path, fix="check the path")
        try:
            self._reader = GGUFReader(path)
            self._tensors = {one.name: one for one in self._reader.tensors}
            self.architecture = str(self._entry("general.architecture"))
            self.blocks = int(self._entry(f"{self.architecture}.block_count", 0))
        except Exception as error:  # a broken file can make the reader raise anything
            raise InputError(
                "the GGUF file cannot be read",
                where=where,
                got=f"{path}: {type(error).__name__}: {error}",
                fix="copy or download the file again",
            ) from error
        parts = self._entry("split.count", 1)
        if parts > 1:
            raise InputError(
                "the GGUF file is one part of a model",
                where=where,
                got=f"{path}, one of {parts}",
                fix="join them with llama.cpp: llama-gguf-split --merge",
            )
        if self._reader.byte_order != "I" or not self._tensors:
            what = "was written for the other byte order" if self._tensors else "has no tensors"
            raise InputError(f"the GGUF file {what}", where=where, got=path)

    def _entry(self, key: str, default: Any = None) -> Any:
        field = self._reader.get_field(key)
        return default if field is None else field.contents()

    @property
    def names(self) -> list[str]:
        """The tensors, in the order of the file."""
        return list(self._tensors)

    @property
    def alignment(self) -> int:
        """Every tensor begins at a multiple of so many bytes."""
        return int(self._reader.alignment)

    @property
    def version(self) -> int:
        """The version of the format."""
        return int(self._entry("GGUF.version"))

    @property
    def entries(self) -> int:
        """The number of metadata entries."""
        return int(self._entry("GGUF.kv_count"))

    @cached_property
    def metadata(self) -> bytes:
        """All metadata entries, the tokenizer among them, as they are in the file."""
        end = min(one.field.offset for one in self._reader.tensors)
        return self._reader.data[HEADER.size : end].tobytes()

    def place_of(self, key: str) -> int | None:
        """Where the four bytes of a number begin in ``metadata``; None if there is no such entry."""
        field = self._reader.get_field(key)
        if field is None or field.parts[-1].nbytes != 4:
            return None
        return field.offset - HEADER.size + sum(int(part.nbytes) for part in field.parts[:-1])

    def type(self, name: str) -> GGMLQuantizationType:
        """How a tensor's values are stored."""
        return self._tensors[name].tensor_type

    def shape(self, name: str) -> tuple[int, ...]:
        """A tensor's shape, rows first as in PyTorch; the file lists the last dimension first."""
        return tuple(int(size) for size in reversed(self._tensors[name].shape))

    def stored(self, name: str) -> NDArray[np.uint8]:
        """A tensor's bytes, mapped from the file."""
        return self._tensors[name].data.reshape(-1).view(np.uint8)

    def values(self, name: str) -> Floats:
        """A tensor's values in float32, with its ``shape``."""
        tensor = self._tensors[name]
        return dequantize(tensor.data, tensor.tensor_type).reshape(self.shape(name))
