"""The page of the command line, out of each verb's own ``--help``."""

from __future__ import annotations

import contextlib
import functools
import html
import io
import os
import re
import textwrap
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from unittest import mock

from doratune.cli import main as program
from doratune.cli.main import VERBS, module_of

WIDTH = "400"  # columns: one line for each flag
GROUP = re.compile(
    r"^(?P<title>[a-z][a-z ]*):\n(?P<rows>(?:  (?:--|[A-Z]).*\n(?: {20,}.*\n)*)+)", re.MULTILINE
)


@dataclass
class Entry:
    """One flag or argument: how it is written, and its help."""

    spelling: str
    help: str = ""


@dataclass
class Group:
    """The flags in one group of a help text."""

    title: str
    entries: list[Entry] = field(default_factory=list)


def command_line_page() -> str:
    """The whole page, in Markdown."""
    lines = [
        "# Command line",
        "",
        "This page is made from the parsers when the site is built. `doratune VERB --help` shows the same.",
        "",
        "| verb | does |",
        "| :-- | :-- |",
        *(f"| [`{verb}`](#doratune-{verb}) | {what} |" for verb, what in VERBS.items()),
        "",
        (program.__doc__ or "").partition("\n\n")[2].strip(),
        "",
    ]
    for verb in VERBS:
        lines += _verb(f"doratune {verb}", help_of(verb), level=2)
        for kind in getattr(module_of(verb), "KINDS", {}):
            lines += _verb(f"doratune {verb} {kind}", help_of(verb, kind), level=3)
    return "\n".join(lines)


@functools.cache
def help_of(*words: str) -> str:
    """What a verb prints for ``--help``, with one line for each flag."""
    shown = io.TextIOWrapper(io.BytesIO(), encoding="utf-8")
    run = module_of(words[0]).main
    with _wide(), contextlib.redirect_stdout(shown), contextlib.suppress(SystemExit):
        run([*words[1:], "--help"])
    shown.seek(0)
    return shown.read()


def parse_help(text: str) -> tuple[str, list[Group]]:
    """Split a help text.

    Args:
        text: As printed.

    Returns:
        What comes before the first group, and the groups.
    """
    groups = list(GROUP.finditer(text))
    about = text[: groups[0].start()] if groups else text
    lines = [
        line if line.startswith(" ") else textwrap.fill(line, 100) for line in about.strip().splitlines()
    ]
    return "\n".join(lines), [_group(one["title"], one["rows"]) for one in groups]


def _wrapped(line: str) -> str:
    return line if line.startswith(" ") else textwrap.fill(line, 100)


def _group(title: str, rows: str) -> Group:
    group = Group(title)
    for row in rows.splitlines():
        if row.startswith(" " * 20):  # the help of the line above
            group.entries[-1].help = f"{group.entries[-1].help} {row.strip()}".strip()
            continue
        spelling, _, told = row.strip().partition("  ")
        group.entries.append(Entry(spelling, told.strip()))
    return group


def _verb(name: str, text: str, level: int) -> list[str]:
    about, groups = parse_help(text)
    lines = [f"{'#' * level} {name}", "", "```text", about, "```", ""]
    for group in groups:
        if group.title != "options" or len(groups) > 1:
            lines += [f"{'#' * (level + 1)} {group.title} {{: #{_anchor(name, group.title)} }}", ""]
        for entry in group.entries:
            lines += [f"`{entry.spelling}`", f":   {_escaped(entry.help)}", ""]
    return lines


def _anchor(name: str, title: str) -> str:
    return re.sub(r"[^a-z0-9]+", "-", f"{name} {title}".lower()).strip("-")


def _escaped(text: str) -> str:
    """Markdown that shows ``text`` as it is; a help text may hold <task> or *."""
    return re.sub(r"([*_\[\]`])", r"\\\1", html.escape(text, quote=False)) or "\u2013"


@contextlib.contextmanager
def _wide() -> Iterator[None]:
    with mock.patch.dict(os.environ, {"COLUMNS": WIDTH, "NO_COLOR": "1"}):
        yield


PAGES: dict[str, Callable[[], str]] = {"reference/command-line.md": command_line_page}
