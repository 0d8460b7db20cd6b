"""Which servers load an adapter or a model, in the terminal."""

from __future__ import annotations

from collections import defaultdict

from rich.console import Console
from rich.table import Table
from rich.text import Text

from doratune.records.servers import Obstacle, ServedContents, ServerAnswer, ServingCheck, Tried
from doratune.report.terminal import table_without_rules

STYLES = {"yes": "green", "no": "red", "wrongly": "bold red"}
KINDS = {"model": "a model", "gguf_model": "a model as GGUF", "gguf_adapter": "an adapter as GGUF"}
TRIED: dict[Tried, str] = {
    "reader": "run alone, without a server, in {}",
    "converter": "run as a script in {}",
    "nothing": "only read in {}",
    "all": "run as a whole in {}",
}
"""How a sentence says what was tried."""


def print_serving(check: ServingCheck, console: Console) -> None:
    """Print the answers as a table, the commands below it, and how the answers were found.

    Args:
        check: The answers.
        console: Where to print; lines of commands are never wrapped, so that they can be pasted.
    """
    console.print(Text(f"{check.target}: {described(check.contents)}"))
    console.print()
    console.print(_table(check.servers))
    _print_commands(check.servers, console)
    console.print()
    for words in _notes(check.servers):
        console.print(Text(words, style="dim"))


def described(contents: ServedContents) -> str:
    """What is to be served, in a phrase."""
    if contents.kind != "adapter":
        architecture = f" ({contents.architecture})" if contents.architecture else ""
        return f"{KINDS[contents.kind]}{architecture}"
    method = "DoRA" if "dora" in contents.parts else "LoRA"
    ranks = " and ".join(map(str, contents.ranks))
    base = f", base {contents.base}" if contents.base else ""
    return f"a {method} adapter of rank {ranks} on {', '.join(contents.modules)}{base}"


def _table(answers: list[ServerAnswer]) -> Table:
    table = table_without_rules()
    for title in ("Server", "Loads", "Why not"):
        table.add_column(title, overflow="fold")
    for one in answers:
        why = "\n".join(map(_obstacle, one.obstacles))
        table.add_row(Text(one.title), Text(one.loads, style=STYLES[one.loads]), Text(why))
    return table


def _obstacle(obstacle: Obstacle) -> str:
    return f"{'ignores' if obstacle.ignored else 'refuses'} {obstacle.what}"


def _print_commands(answers: list[ServerAnswer], console: Console) -> None:
    """The commands: those that serve it as it is, then those that make something else, each once."""
    starts = {one.title: tuple(one.start) for one in answers if one.start}
    if starts:
        console.print(Text("\nTo serve it:"))
    for title, lines in starts.items():
        _print_lines([f"# {title}", *lines], console)
    makers: dict[tuple[str, str], list[str]] = defaultdict(list)
    for one in answers:
        for way in one.ways:
            makers[way.makes, way.command].append(one.title)
    for (makes, command), titles in makers.items():
        console.print(Text(f"\nFor {_listed(titles)}, {makes}:"))
        _print_lines([command], console)


def _print_lines(lines: list[str], console: Console) -> None:
    for line in lines:
        console.print(Text(f"  {line}", style="dim" if line.startswith("#") else "bold"), soft_wrap=True)


def _notes(answers: list[ServerAnswer]) -> list[str]:
    notes = [f"{one.title}: {one.note}." for one in answers if one.note and one.loads == "yes"]
    days = _listed(sorted({f"{one.read:%d %B %Y}".lstrip("0") for one in answers}))
    tried = [
        words.format(_listed([f"{one.title} {one.version}" for one in answers if one.tried == kind]))
        for kind, words in TRIED.items()
        if any(one.tried == kind for one in answers)
    ]
    return [
        *notes,
        f"As of {days}, the code that reads an adapter was {'; '.join(tried)}. "
        "Compare a few answers with doratune's before you rely on a server.",
    ]


def _listed(names: list[str]) -> str:
    *first, last = names
    return f"{', '.join(first)} and {last}" if first else last
