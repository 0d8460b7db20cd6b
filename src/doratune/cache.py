"""The folder of cached files. Anything missing from it is created again."""

from __future__ import annotations

import os
from pathlib import Path


def cache_home() -> Path:
    """The folder: ``$DORATUNE_CACHE``, else ``doratune`` in the platform's user cache."""
    if override := os.environ.get("DORATUNE_CACHE"):
        return Path(override).expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "doratune"
