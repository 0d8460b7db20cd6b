"""Which functions of transformers are the same: its models spell out what they have in common."""

from __future__ import annotations

from typing import Any


def spelled_alike(one: Any, other: Any) -> bool:
    """Whether two functions have the same code, and so do the same if the names in it mean the same.

    Args:
        one: A function, or whatever is there in its place.
        other: A function.
    """
    parts = ("co_code", "co_names", "co_consts")
    codes = getattr(one, "__code__", None), other.__code__
    return all(getattr(codes[0], part, None) == getattr(codes[1], part) for part in parts)
