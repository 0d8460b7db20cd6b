"""Checksums of trained weights, which tell them from others with the same names and shapes."""

from __future__ import annotations

import json
import logging
import mmap
from pathlib import Path

import xxhash

from doratune.errors import InputError
from doratune.records.run import RunRecord

logger = logging.getLogger(__name__)


def weights_checksum(folder: Path) -> str:
    """A hash of the tensors in a folder's safetensors files: their names, types, shapes and values.

    Their order, their division into files and the files' metadata do not count. The files are read once,
    without a copy in memory.

    Args:
        folder: An adapter or a model.

    Returns:
        ``xxh3_128:<32 hex digits>``.

    Raises:
        InputError: A file is broken, or a tensor is in two files.
    """
    tensors: dict[str, bytes] = {}
    for path in sorted(folder.glob("*.safetensors")):
        try:
            found = _tensors(path)
        except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            raise InputError(
                "the weights cannot be read",
                where=str(path),
                got=error,
                fix="copy the file again from where it was saved",
            ) from error
        if repeated := sorted(found.keys() & tensors.keys()):
            raise InputError("two files hold one tensor", where=str(folder), got=repeated[0])
        tensors |= found
    everything = xxhash.xxh3_128()
    for name in sorted(tensors):
        everything.update(tensors[name])
    return f"xxh3_128:{everything.hexdigest()}"


def weights_bytes(folder: Path) -> int:
    """The size of a folder's safetensors files."""
    return sum(path.stat().st_size for path in folder.glob("*.safetensors"))


def checked_weights(folder: Path, trained: str | None) -> str:
    """The checksum of the weights in a run's folder, which must be those that its training left.

    Where the record cannot tell, that is logged.

    Args:
        folder: The run's adapter or model.
        trained: The checksum in the run's record; None in records of older versions.

    Raises:
        InputError: They differ, or cannot be read.
    """
    found = weights_checksum(folder)
    if trained is None:
        logger.warning(
            "%s: the record, of an older version, has no checksum of its weights, so they were not compared",
            folder,
        )
    elif found != trained:
        raise InputError(
            "the weights in the run's folder are not those that its training left",
            where=str(folder),
            got=found,
            expected=f"{trained}, as the run's record says",
            fix="copy the folder again from where it was trained, or train again with --overwrite; to use "
            "these weights nevertheless, copy their folder out of the run and name the copy",
        )
    return found


def check_own_weights(record: RunRecord, *, where: str) -> None:
    """Refuse a record with evaluations of other weights than its training left.

    Args:
        record: A run's record, or that of an adapter's evaluations.
        where: The record's folder, for the message.

    Raises:
        InputError: Two of the checksums differ.
    """
    told = {one.predictions: one.scored.weights_checksum for one in record.evaluations if one.scored}
    if record.text is not None:
        told["text"] = record.text.scored.weights_checksum
    if record.training is not None:
        told = {"training": record.training.weights_checksum, **told}
    known = {what: checksum for what, checksum in told.items() if checksum is not None}
    if len(set(known.values())) > 1:
        raise InputError(
            "the evaluations of a record are of different weights",
            where=where,
            got=", ".join(f"{what} {checksum}" for what, checksum in known.items()),
            fix="evaluate the weights again with --overwrite",
        )


def _tensors(path: Path) -> dict[str, bytes]:
    """The hashed bytes of each tensor in a safetensors file, by its name."""
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
        begin = 8 + int.from_bytes(content[:8], "little")
        header = json.loads(content[8:begin])
        header.pop("__metadata__", None)
        found = {}
        with memoryview(content) as view:
            for name, one in header.items():
                first, last = (begin + offset for offset in one["data_offsets"])
                if not begin <= first <= last <= len(view):
                    raise ValueError(f"{name} is not whole")
                with view[first:last] as values:
                    digest = xxhash.xxh3_128_digest(values)
                found[name] = f"{name} {one['dtype']} {list(one['shape'])} ".encode() + digest
        return found
