"""Folders that appear whole or not at all, and safetensors files written one tensor at a time."""

from __future__ import annotations

import json
import os
import secrets
import shutil
import signal
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from doratune.byte_size import byte_size
from doratune.errors import InputError, StoppedError
from doratune.models.weights import DTYPES
from doratune.records.files import write_text_atomic
from doratune.records.folders import refuse_output

ROOM = 32 << 20
"""Bytes that must stay free on the disk besides the weights: tokenizer, configuration, card."""
DTYPE_NAMES = {dtype: name for name, dtype in DTYPES.items()}


@dataclass
class Stage:
    """A folder that is being filled.

    Attributes:
        folder: Where the files are written.
        output: What it is called in the end.
    """

    folder: Path
    output: Path

    def mark_unusable(self, why: str) -> None:
        """Give the folder a name and a README that say that it must not be used.

        Args:
            why: The reason, as Markdown.
        """
        place, number = self.output.with_name(f"{self.output.name}-unusable"), 1
        while place.exists():
            number += 1
            place = self.output.with_name(f"{self.output.name}-unusable-{number}")
        self.output = place
        write_text_atomic(self.folder / "README.md", f"# Do not use this folder\n\n{why}\n")


@contextmanager
def stage(output: Path, *, size: int, where: str = "--output") -> Iterator[Stage]:
    """A folder next to ``output`` that becomes it at the end.

    On an error, Ctrl-C or SIGTERM it is removed, and ``output`` does not appear.

    Args:
        output: The folder to write, which must not exist or be empty.
        size: How many bytes will be written, at least.
        where: Where the user named it, for messages.

    Yields:
        The folder to fill, and the name that it will have.

    Raises:
        InputError: The output cannot be written or is taken, or the disk is too small.
        StoppedError: SIGTERM arrived.
    """
    refuse_output(output, where=where)
    refuse_taken(output, where=where)
    output = output.absolute()
    made = [one for one in output.parents if not one.exists()]
    refuse_small_disk(next(one for one in output.parents if one.exists()), size, where)
    with stopping():
        folder = None
        try:
            output.parent.mkdir(parents=True, exist_ok=True)
            folder = output.with_name(f".{output.name:.40}-{secrets.token_hex(4)}")
            folder.mkdir()
            result = Stage(folder, output)
            yield result
            refuse_taken(result.output, where=where)
            folder.rename(result.output)
        except BaseException:
            if folder is not None:
                shutil.rmtree(folder, ignore_errors=True)
            for one in made:
                try:
                    one.rmdir()
                except OSError:  # not there, or used by another command
                    break
            raise


def refuse_taken(output: Path, *, where: str = "--output") -> None:
    """Refuse an output folder that holds something.

    Raises:
        InputError: It does.
    """
    if output.is_dir() and any(output.iterdir()):
        raise InputError(
            "the output folder is not empty",
            where=where,
            got=output,
            fix="choose another folder; nothing is overwritten",
        )


def refuse_small_disk(place: Path, size: int, where: str) -> None:
    """Refuse a folder whose disk has too little space for so many bytes.

    Raises:
        InputError: It has.
    """
    free = shutil.disk_usage(place).free
    if free < size + ROOM:
        raise InputError(
            "the disk is too small",
            where=where,
            got=f"{byte_size(free)} free at {place}",
            expected=byte_size(size + ROOM),
            fix="free some space, or name a folder on another disk",
        )


@contextmanager
def stopping() -> Iterator[None]:
    """Let SIGTERM end the work as an exception, so that nothing is left behind."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def stop(number: int, _: Any) -> None:
        raise StoppedError(number, "stopped before the output was complete; nothing is left of it")

    before = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


class TensorFile:
    """A safetensors file that is written one tensor at a time, so that only one is in memory.

    Args:
        path: The file.
        tensors: The type and shape of each tensor that will be written.

    Attributes:
        names: The tensors in the order in which they must be written: by their elements' size, so that all
            are aligned.
    """

    def __init__(self, path: Path, tensors: Mapping[str, tuple[torch.dtype, tuple[int, ...]]]) -> None:
        self.names = sorted(tensors, key=lambda name: (-tensors[name][0].itemsize, name))
        self._tensors, self._left = dict(tensors), iter(self.names)
        header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
        end = 0
        for name in self.names:
            dtype, shape = tensors[name]
            begin, end = end, end + size_of(dtype, shape)
            header[name] = {"dtype": DTYPE_NAMES[dtype], "shape": list(shape), "data_offsets": [begin, end]}
        text = json.dumps(header, separators=(",", ":")).encode()
        text += b" " * (-len(text) % 8)
        self._file = path.open("xb")
        self._file.write(len(text).to_bytes(8, "little") + text)

    def write(self, name: str, tensor: Tensor) -> None:
        """Write the next tensor of ``names``.

        Raises:
            ValueError: It is another one, or of another type or shape than was said.
        """
        if name != next(self._left) or (tensor.dtype, tuple(tensor.shape)) != self._tensors[name]:
            raise ValueError(f"{name} {tensor.dtype} {tuple(tensor.shape)} is not the tensor to be written")
        if tensor.numel():
            self._file.write(tensor.contiguous().reshape(-1).view(torch.uint8).numpy().data)

    def __enter__(self) -> TensorFile:
        return self

    def __exit__(self, kind: object, *_: object) -> None:
        if kind is None:
            self._file.flush()
            os.fsync(self._file.fileno())
        self._file.close()
        if kind is None and (left := list(self._left)):
            raise ValueError(f"{left} were not written")


def size_of(dtype: torch.dtype, shape: tuple[int, ...]) -> int:
    """Bytes of a tensor."""
    return dtype.itemsize * torch.Size(shape).numel()
