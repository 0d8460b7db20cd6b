"""Griffe extension: a docstring's "::" before a block of code is a colon on a page."""

from __future__ import annotations

from typing import Any

from griffe import Extension, Object


class LiteralBlocks(Extension):
    """Takes the second colon away."""

    def on_instance(self, *, obj: Object, **kwargs: Any) -> None:
        """Change the docstring of one object."""
        if obj.docstring is not None:
            obj.docstring.value = obj.docstring.value.replace("::\n", ":\n")
