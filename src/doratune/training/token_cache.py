"""A cache of tokenised rows on disk: written once, then memory-mapped by every run that trains on them.

An entry is a folder ``tokens/<key>`` in the cache, as ``datasets`` saves it (Arrow and JSON), with a
checksum. It appears complete or not at all. A damaged entry is written again, and one not used for a month is
deleted. Entries may be deleted at any time.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib.metadata
import json
import logging
import os
import shutil
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import xxhash
from datasets import Dataset
from tokenizers import Tokenizer
from transformers import PreTrainedTokenizerBase

from doratune import __version__
from doratune.cache import cache_home
from doratune.data.examples import Example

logger = logging.getLogger(__name__)

FORMAT = 1
"""Version of the rows in the cache, raised when the same examples become different rows."""
CHECKSUM_NAME = "checksum"
UNUSED_SECONDS = 30 * 24 * 3600


def token_key(
    examples: Sequence[Example], tokenizer: PreTrainedTokenizerBase, *, loss_on_prompt: bool
) -> str | None:
    """A hash of everything that determines the rows that the examples become.

    That is the texts in their order (with the prompt template), the tokenizer, which tokens have a loss, and
    the versions of the code. It leaves out the cutoff: whole rows are cached, and long ones are removed
    afterwards.

    Args:
        examples: The examples to train on.
        tokenizer: The model's.
        loss_on_prompt: Whether the prompt's tokens are supervised too.

    Returns:
        32 hex digits, or None if the tokenizer's serialised form does not identify it: it is wholly or partly
        implemented in Python, or of a class outside transformers.
    """
    backend = _serialised(tokenizer)
    if backend is None:
        return None
    parts = {
        "format": FORMAT,
        "doratune": __version__,
        **{name: importlib.metadata.version(name) for name in ("datasets", "tokenizers", "transformers")},
        "class": type(tokenizer).__qualname__,
        "backend": backend,
        "split_special_tokens": tokenizer.split_special_tokens,  # the backend does not serialise it
        "eos": tokenizer.eos_token_id,
        "loss_on_prompt": loss_on_prompt,
    }
    digest = xxhash.xxh3_128(json.dumps(parts).encode())
    for example in examples:
        digest.update(json.dumps([example.prompt, example.candidates[example.gold]]).encode())
    return digest.hexdigest()


def load_rows(key: str) -> Dataset | None:
    """The rows cached under ``key``, memory-mapped; None if there are none or they are damaged."""
    folder = _folder(key)
    try:
        if (folder / CHECKSUM_NAME).read_bytes() != _checksum(folder):
            logger.warning("the tokenised rows in %s are damaged and are created again", folder)
            return None
        rows = Dataset.load_from_disk(str(folder), keep_in_memory=False)
    except OSError:
        return None
    with contextlib.suppress(OSError):  # a cache that others fill may be read-only
        os.utime(folder)
    return rows


def store_rows(key: str, rows: Dataset) -> Dataset:
    """Cache ``rows`` under ``key``.

    Args:
        key: From :func:`token_key`.
        rows: The rows, which the cache does not have intact.

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
            try:
                partial.rename(folder)
            except OSError:
                # There is an entry; if it is intact, another process of a launch may be reading it.
                if not _intact(folder):
                    shutil.rmtree(folder, ignore_errors=True)
                    partial.rename(folder)
    except OSError as error:  # also if another process has just written the same rows
        problem = error
    stored = load_rows(key)
    if stored is None:
        logger.warning("the tokenised rows cannot be cached in %s: %s", folder, problem)
        return rows
    return stored


def _folder(key: str) -> Path:
    return cache_home() / "tokens" / key


def _intact(folder: Path) -> bool:
    """Whether there is an entry as it was written."""
    try:
        return (folder / CHECKSUM_NAME).read_bytes() == _checksum(folder)
    except OSError:
        return False


def _checksum(folder: Path) -> bytes:
    """A hash of the names and contents of all files in ``folder`` except the checksum."""
    digest = xxhash.xxh3_128()
    for path in sorted(folder.iterdir()):
        if path.name != CHECKSUM_NAME:
            with path.open("rb") as file:
                content = hashlib.file_digest(file, xxhash.xxh3_128).hexdigest()
            digest.update(f"{path.name} {content}\n".encode())
    return digest.hexdigest().encode()


def _remove_unused(home: Path) -> None:
    """Delete entries last used over a month ago, and equally old leftovers of killed processes."""
    for entry in home.iterdir():
        with contextlib.suppress(OSError):
            if time.time() - entry.stat().st_mtime > UNUSED_SECONDS:
                shutil.rmtree(entry)


def _serialised(tokenizer: PreTrainedTokenizerBase) -> str | None:
    """All that the Rust tokenizer does, as JSON: model, normaliser, special and added tokens, templates."""
    backend: Tokenizer | None = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None or type(tokenizer).__module__.partition(".")[0] != "transformers":
        return None
    try:
        return backend.to_str()
    except Exception:  # tokenizers raises nothing narrower for a part written in Python
        return None
