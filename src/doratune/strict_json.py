"""JSON without repeated keys, of which Python's reader silently takes the last."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from doratune.errors import InputError, shown


class RepeatedKeyError(ValueError):
    """An object repeats a key.

    Args:
        key: The first repeated key.
        values: Its values.
    """

    def __init__(self, key: str, values: Sequence[Any]) -> None:
        super().__init__(f"the key {key!r} with the values {', '.join(map(shown, values))}")


def repeated_key(pairs: Sequence[tuple[str, Any]]) -> tuple[str, list[Any]] | None:
    """An object's first repeated key, with its values; None if no key is repeated."""
    if len(dict(pairs)) == len(pairs):
        return None
    counts = Counter(key for key, _ in pairs)
    repeated = next(key for key, count in counts.items() if count > 1)
    return repeated, [value for key, value in pairs if key == repeated]


def strict_loads(text: str) -> Any:
    """Parse ``text`` as JSON.

    Raises:
        RepeatedKeyError: An object repeats a key, at any depth.
        ValueError: It is not JSON.
        RecursionError: It is nested too deeply.
    """
    return json.loads(text, object_pairs_hook=_once)


def read_object(path: Path, what: str) -> dict[str, Any]:
    """Read a file that holds one JSON object.

    Args:
        path: The file.
        what: What it is, for the messages, such as "the adapter's configuration".

    Raises:
        InputError: It cannot be read, is not JSON or not an object, or repeats a key.
    """
    try:
        values = strict_loads(path.read_text(encoding="utf-8"))
    except RepeatedKeyError as error:
        raise InputError(
            f"{what} repeats a key", where=str(path), got=str(error), expected="each key once"
        ) from error
    except (OSError, ValueError, RecursionError) as error:
        raise InputError(f"{what} cannot be read", where=str(path), got=str(error)) from error
    if not isinstance(values, dict):
        raise InputError(f"{what} is not a JSON object", where=str(path), got=type(values).__name__)
    return values


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    if found := repeated_key(pairs):
        raise RepeatedKeyError(*found)
    return dict(pairs)
