"""The folder of cached files. Whatever is missing from it is created again."""

from __future__ import annotations

import os
from pathlib import Path


def cache_home() -> Path:
    """The folder: ``$DORATUNE_CACHE`` if set, otherwise ``doratune`` in the user's cache folder."""
    if override := os.environ.get("DORATUNE_CACHE"):
        return Path(override).expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "doratune"
