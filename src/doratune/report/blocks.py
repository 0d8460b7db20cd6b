"""The parts of a report (tables, paragraphs, plots and so on), which each output format renders."""

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
    grouped: bool = False  #: whether rows whose names have the same detail belong together

    @property
    def has_samples(self) -> bool:
        """Whether any row is marked as a sample."""
        return any(row[0].sample for row in self.rows)


@dataclass(frozen=True)
class Text:
    """A paragraph: "headline" is the result in one line, "note" a warning, "aside" an explanation."""

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
    """The result on one task."""

    label: str
    sample: bool
    words: str
    figures: str
    caution: str = ""  #: a reason to trust the verdict less


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
    wide: str = ""  #: the same at the width of the page; empty if other figures stand next to it


@dataclass(frozen=True)
class Figures:
    """Plots side by side, drawn only when needed, that is for the HTML page."""

    kind: ClassVar[str] = "figures"
    draw: Callable[[], list[Figure]]
    note: str = ""  #: how to read them


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
    """Commands or files, shown verbatim."""

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
    version: str  #: doratune's version
    sections: list[Section]
