"""The page of what servers take, out of ``doratune/serving/servers/servers.yaml``."""

from __future__ import annotations

from collections.abc import Iterator

from doratune.records.servers import Part, Tried
from doratune.serving.servers.contents import MEANINGS
from doratune.serving.servers.facts import PARTS, Server, read_servers

ABOUT = """# What servers take

This page is made from the table that `doratune check-serving` uses, when the site is built. It says what
each server's code does with an adapter that PEFT saved. No server was started.

- **takes**: it computes what PEFT computes.
- **refuses**: it stops with an error.
- **ignores**: it loads the adapter without this part and says nothing, so its answers are wrong.

Projects move on: tell us where a cell is out of date.
"""


TRIED: dict[Tried, str] = {
    "nothing": "no",
    "reader": "its code that reads an adapter, alone",
    "converter": "its converter of adapters",
    "all": "yes",
}


def servers_page() -> str:
    """The whole page, in Markdown."""
    servers = list(read_servers().values())
    return "\n".join([ABOUT, *_versions(servers), *_parts(servers), *_limits(servers), *_sources(servers)])


def _versions(servers: list[Server]) -> Iterator[str]:
    yield from ["## Versions", "", "| server | read at | on | tried | |", "| :-- | :-- | :-- | :-- | :-- |"]
    for one in servers:
        tried = TRIED[one.tried]
        note = one.adapter_note or ""
        yield f"| {one.title} | {one.version} | {one.date} | {tried} | {note} |"
    yield ""


def _parts(servers: list[Server]) -> Iterator[str]:
    yield from ["## Parts of an adapter", "", f"| | {' | '.join(one.title for one in servers)} |"]
    yield f"| :-- |{' :-- |' * len(servers)}"
    for part in PARTS:
        yield f"| {_meaning(part)} | {' | '.join(_does(one, part) for one in servers)} |"
    yield ""


def _meaning(part: Part) -> str:
    what, _, setting = MEANINGS[part].partition(" (")
    return f"{what} (`{setting.removesuffix(')')}`)" if setting else what


def _does(server: Server, part: Part) -> str:
    does = server.parts[part].does
    return does if does == "takes" else f"**{does}**"


def _limits(servers: list[Server]) -> Iterator[str]:
    yield from ["## Ranks, modules and files", ""]
    for one in servers:
        ranks = f"ranks {one.ranks.described}" if one.ranks else "any rank"
        names = ", ".join(f"`{name}`" for name in one.modules.names) if one.modules else ""
        modules = f"the modules {names}" if names else "every linear layer"
        folder = "merged folders" if one.model.does == "takes" else "no merged folders"
        gguf = {("takes", "takes"): "GGUF models and adapters", ("takes", "refuses"): "GGUF models"}
        files = gguf.get((one.gguf_model.does, one.gguf_adapter.does), "no GGUF")
        yield f"- **{one.title}**: {ranks}; {modules}; {folder}; {files}."
    yield ""


def _sources(servers: list[Server]) -> Iterator[str]:
    yield from [
        "## Where it was read",
        "",
        "In each project's repository or package, at the version above.",
        "",
    ]
    for one in servers:
        facts = [*one.parts.values(), one.ranks, one.modules, one.model, one.gguf_model, one.gguf_adapter]
        files = dict.fromkeys(fact.where for fact in facts if fact is not None and fact.where is not None)
        yield f"- **{one.title}**: {', '.join(f'`{file}`' for file in files)}."
    yield ""


PAGES = {"reference/servers.md": servers_page}
