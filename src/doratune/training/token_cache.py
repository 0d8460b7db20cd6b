"""Tokenised rows on disk: written once, then memory-mapped by every run that trains on them.

An entry is a folder ``tokens/<key>`` in the cache, as ``datasets`` saves it (Arrow and JSON), with a
checksum. It appears complete or not at all, an entry that is not what was written is made again, and one that
no run has used for a month goes. Any of them may be deleted at any time.
"""

from __future__ import annotations

import contextlib
import hashlib
import logging
import os
import shutil
import tempfile
import time
from pathlib import Path

import xxhash
from datasets import Dataset

from doratune.cache import cache_home

logger = logging.getLogger(__name__)

CHECKSUM_NAME = "checksum"
UNUSED_SECONDS = 30 * 24 * 3600


def load_rows(key: str) -> Dataset | None:
    """The rows kept under ``key``, memory-mapped; None if there are none, or not as they were written."""
    folder = _folder(key)
    try:
        if (folder / CHECKSUM_NAME).read_bytes() != _checksum(folder):
            logger.warning("the tokenised rows in %s are damaged and are made again", folder)
            return None
        rows = Dataset.load_from_disk(str(folder), keep_in_memory=False)
    except OSError:
        return None
    with contextlib.suppress(OSError):  # a cache that others fill may be read-only
        os.utime(folder)
    return rows


def store_rows(key: str, rows: Dataset) -> Dataset:
    """Keep ``rows`` under ``key``.

    Args:
        key: From :func:`doratune.training.token_key.token_key`.
        rows: The rows, which the cache does not hold intact.

    Returns:
        The same rows, memory-mapped; ``rows`` themselves, with a warning, if they cannot be written.
    """
    folder = _folder(key)
    problem: OSError | None = None
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        _remove_unused(folder.parent)
        with tempfile.TemporaryDirectory(prefix=f".{key}-", dir=folder.parent) as scratch:
            partial = Path(scratch) / key
            rows.save_to_disk(str(partial))
            (partial / CHECKSUM_NAME).write_bytes(_checksum(partial))
            shutil.rmtree(folder, ignore_errors=True)
            partial.rename(folder)
    except OSError as error:  # also where another process has just written the same
        problem = error
    stored = load_rows(key)
    if stored is None:
        logger.warning("the tokenised rows cannot be kept in %s: %s", folder, problem)
        return rows
    return stored


def _folder(key: str) -> Path:
    return cache_home() / "tokens" / key


def _checksum(folder: Path) -> bytes:
    """A hash of the names and contents of all files in ``folder`` but the checksum's own."""
    digest = xxhash.xxh3_128()
    for path in sorted(folder.iterdir()):
        if path.name != CHECKSUM_NAME:
            with path.open("rb") as file:
                content = hashlib.file_digest(file, xxhash.xxh3_128).hexdigest()
            digest.update(f"{path.name} {content}\n".encode())
    return digest.hexdigest().encode()


def _remove_unused(home: Path) -> None:
    """Delete what was last used a month ago, and what killed processes left then."""
    for entry in home.iterdir():
        with contextlib.suppress(OSError):
            if time.time() - entry.stat().st_mtime > UNUSED_SECONDS:
                shutil.rmtree(entry)
