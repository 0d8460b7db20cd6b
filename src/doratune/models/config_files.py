"""Checks a model's small JSON files for repeated keys, of which transformers takes the last value."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from doratune.records.layout import MODEL_CONFIG
from doratune.strict_json import read_object

NAMES = (
    MODEL_CONFIG,
    "generation_config.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
)


def refuse_repeated_keys(folder: Path) -> None:
    """Refuse a model folder whose settings repeat a key.

    Raises:
        InputError: A file repeats a key, at any depth, or is not a JSON object.
    """
    _refuse(folder / name for name in NAMES)


def refuse_repeated_keys_of_hub(repository: str) -> None:
    """The same for a model that was just loaded from the hub or the cache.

    Raises:
        InputError: A file repeats a key, or is not a JSON object.
    """
    from huggingface_hub import try_to_load_from_cache

    cached = [try_to_load_from_cache(repository, name) for name in NAMES]
    _refuse(Path(path) for path in cached if isinstance(path, str))


def _refuse(files: Iterable[Path]) -> None:
    for file in files:
        if file.is_file():
            read_object(file, f"the model's {file.name}")
