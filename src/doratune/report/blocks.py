"""What a report is made of: tables, paragraphs and plots, which each rendering lays out in its own way."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar, Literal

NONE = "–"
SAMPLE = "sample, not a benchmark"


@dataclass(frozen=True)
class Entry:
    """One field of a table: the main text and a second, quieter line."""

    text: str
    detail: str = ""
    sample: bool = False  #: whether it names a built-in sample, which is marked as such


@dataclass(frozen=True)
class Table:
    """A table whose first column names the rows."""

    kind: ClassVar[str] = "table"
    caption: str
    columns: list[Entry]
    rows: list[list[Entry]]

    @property
    def has_samples(self) -> bool:
        """Whether any row is marked as a sample."""
        return any(row[0].sample for row in self.rows)


@dataclass(frozen=True)
class Text:
    """A paragraph: "headline" is what came out in one line, "note" a warning, "aside" an explanation."""

    kind: ClassVar[str] = "text"
    words: str
    tone: Literal["plain", "headline", "note", "aside"] = "plain"


@dataclass(frozen=True)
class Heading:
    """A heading inside a section."""

    kind: ClassVar[str] = "heading"
    words: str


@dataclass(frozen=True)
class Verdict:
    """What came out on one task."""

    label: str
    sample: bool
    words: str
    figures: str
    caution: str = ""  #: what makes the verdict worth less than it seems


@dataclass(frozen=True)
class Verdicts:
    """A card for each task."""

    kind: ClassVar[str] = "verdicts"
    cards: list[Verdict]


@dataclass(frozen=True)
class Figure:
    """A plot as an ``<svg>`` element."""

    label: str
    svg: str
    sample: bool = False
    wide: str = ""  #: the same for a row of the page to itself; empty where others stand next to it


@dataclass(frozen=True)
class Figures:
    """Plots side by side. They are drawn when they are asked for, which only the HTML page does."""

    kind: ClassVar[str] = "figures"
    draw: Callable[[], list[Figure]]
    note: str = ""  #: how they are to be read


@dataclass(frozen=True)
class Facts:
    """Names and values."""

    kind: ClassVar[str] = "facts"
    pairs: list[tuple[str, str]]


@dataclass(frozen=True)
class Bullets:
    """A list."""

    kind: ClassVar[str] = "bullets"
    lines: list[str]


@dataclass(frozen=True)
class Code:
    """Commands or files, shown as they are."""

    kind: ClassVar[str] = "code"
    text: str


Block = Table | Text | Heading | Verdicts | Figures | Facts | Bullets | Code


@dataclass(frozen=True)
class Section:
    """A part of the report and its heading."""

    name: str  #: unique in the page
    heading: str
    blocks: list[Block]


@dataclass(frozen=True)
class Page:
    """A whole report."""

    title: str
    question: str | None
    version: str  #: of doratune
    sections: list[Section]
