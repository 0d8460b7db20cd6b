"""The built-in English text, on which an evaluation measures what a model keeps of its language."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

from doratune.named_yaml import read_shipped


@dataclass(frozen=True)
class BuiltinText:
    """A text.

    Attributes:
        name: Its name.
        paragraphs: Its paragraphs, each read by itself.
    """

    name: str
    paragraphs: tuple[str, ...]

    @property
    def sha256(self) -> str:
        """The hash of the whole text."""
        return hashlib.sha256("\n\n".join(self.paragraphs).encode("utf-8")).hexdigest()


def builtin_text() -> BuiltinText:
    """Read the text, about nine hundred words of plain prose, written for doratune."""
    content = read_shipped("doratune.data", "text.yaml")
    return BuiltinText(content["name"], tuple(content["paragraphs"]))
