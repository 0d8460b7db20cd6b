"""The small JSON files of a model, which transformers reads with the last of several values of a key."""

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
    """Refuse a model folder whose settings have one key several times.

    Raises:
        InputError: A file has, at any depth, or is not a JSON object.
    """
    _refuse(folder / name for name in NAMES)


def refuse_repeated_keys_of_hub(repository: str) -> None:
    """The same of a model that was just loaded from the hub, or from the copy in the cache.

    Raises:
        InputError: A file has one key several times, or is not a JSON object.
    """
    from huggingface_hub import try_to_load_from_cache

    cached = [try_to_load_from_cache(repository, name) for name in NAMES]
    _refuse(Path(path) for path in cached if isinstance(path, str))


def _refuse(files: Iterable[Path]) -> None:
    for file in files:
        if file.is_file():
            read_object(file, f"the model's {file.name}")
