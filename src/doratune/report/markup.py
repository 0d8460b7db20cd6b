"""A report as one HTML file, and as Markdown without plots.

The HTML needs no other file: style, plots and a short script are inside, and it shows the same without the
script. The Markdown uses GitHub's tables.
"""

from __future__ import annotations

import re
from functools import cache
from itertools import zip_longest

from jinja2 import Environment, PackageLoader, StrictUndefined, Template

from doratune.report.blocks import (
    SAMPLE,
    Block,
    Bullets,
    Code,
    Entry,
    Facts,
    Figures,
    Heading,
    Page,
    Table,
    Text,
    Verdicts,
)


def to_html(page: Page) -> str:
    """The whole file. All text is escaped; only plots are inserted as they are."""
    return _template().render(page=page)


@cache
def _template() -> Template:
    environment = Environment(
        loader=PackageLoader("doratune.report", "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.globals["SAMPLE"] = SAMPLE
    return environment.get_template("report.html.j2")


def to_markdown(page: Page) -> str:
    """The whole file, ending in a newline."""
    parts = [f"# {_escaped(page.title)}"]
    parts += [_escaped(page.question)] if page.question else []
    for section in page.sections:
        shown = [block for block in section.blocks if not isinstance(block, Figures)]
        headed = [  # a heading of figures alone has nothing below it
            block
            for block, below in zip_longest(shown, shown[1:])
            if not isinstance(block, Heading) or not (below is None or isinstance(below, Heading))
        ]
        parts += [f"## {_escaped(section.heading)}", *map(_block, headed)]
    return "\n\n".join(parts) + "\n"


def _block(block: Block) -> str:
    match block:
        case Table():
            return _table(block)
        case Text():
            return _text(block)
        case Heading():
            return f"### {_escaped(block.words)}"
        case Verdicts():
            return "\n".join(
                f"- {_escaped(one.label)}{f' ({SAMPLE})' if one.sample else ''}: **{_escaped(one.words)}** "
                f"({_escaped(one.figures)}){f' {_escaped(one.caution)}' if one.caution else ''}"
                for one in block.cards
            )
        case Facts():
            return "\n".join(f"- {_escaped(name)}: {_escaped(value)}" for name, value in block.pairs)
        case Bullets():
            return "\n".join(f"- {_escaped(line)}" for line in block.lines)
        case Code():
            return _fenced(block.text)
        case Figures():
            raise TypeError("Markdown shows no plots")


def _text(text: Text) -> str:
    words = _escaped(text.words)
    return {"headline": f"**{words}**", "note": f"**Note:** {words}"}.get(text.tone, words)


def _table(table: Table) -> str:
    """The table in GitHub's form; samples get a star after their name, and a line that explains it."""
    lines = [
        _row([_entry(column) for column in table.columns]),
        _row([":--"] + ["--:"] * (len(table.columns) - 1)),
        *(_row([_entry(entry) for entry in row]) for row in table.rows),
    ]
    return "\n".join(lines) + (f"\n\n\\* {SAMPLE}" if table.has_samples else "")


def _row(entries: list[str]) -> str:
    return f"| {' | '.join(entries)} |"


def _entry(entry: Entry) -> str:
    star = " \\*" if entry.sample else ""
    return _escaped(entry.text) + (f" ({_escaped(entry.detail)})" if entry.detail else "") + star


def _fenced(text: str) -> str:
    """Any text as a code block."""
    longest = max((len(run) for run in re.findall("`+", text)), default=0)
    fence = "`" * max(3, longest + 1)
    return f"{fence}\n{text}\n{fence}"


def _escaped(text: str) -> str:
    """Text that Markdown shows verbatim. A line break would end a table row, so it becomes a space."""
    return re.sub(r"([\\`*\[\]<>|#&~]|(?<![^\W_])_|_(?![^\W_]))", r"\\\1", " ".join(text.split()))
