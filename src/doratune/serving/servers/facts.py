"""What servers load: the facts in ``servers.yaml``, each with the file it was read in; no torch."""

from __future__ import annotations

import datetime
from functools import cache
from typing import Literal, get_args

from pydantic import Field

from doratune.named_yaml import read_shipped
from doratune.records.servers import Part, ServerName, Tried
from doratune.settings import Positive, Settings

Does = Literal["takes", "refuses", "ignores"]
NAMES: tuple[ServerName, ...] = get_args(ServerName)
PARTS: tuple[Part, ...] = get_args(Part)


class Fact(Settings):
    """What a server does with something."""

    does: Does
    """takes: it computes what PEFT computes; refuses: it stops; ignores: it answers without it."""
    where: str
    """The server's file in which that was read."""


class Form(Settings):
    """What a server does with one kind of file or folder."""

    does: Does
    where: str | None = None
    """The server's file in which that was read; None where its documentation begins with it."""
    because: str | None = None
    """What it refuses."""
    start: tuple[str, ...] = Field((), strict=False)
    """The commands that serve it, with names in braces."""
    architectures: list[str] | None = None
    """The only architectures it takes; None if the form is no limit."""


class Ranks(Fact):
    """The ranks a server takes without the consequence in ``does``."""

    settings: list[Positive]
    """Ranks it can be set to, ascending. Without ``multiples`` an adapter of a lower rank fits each."""
    multiples: Positive | None = None
    """Its multiples are taken too, and no ranks between."""

    def setting_for(self, rank: int) -> int | None:
        """The rank to set the server to for an adapter of ``rank``; None if there is none."""
        if self.multiples is not None:
            return rank if rank in self.settings or rank % self.multiples == 0 else None
        return next((one for one in self.settings if one >= rank), None)

    @property
    def described(self) -> str:
        """The ranks it takes, for a message."""
        if self.multiples is None:
            return f"at most {self.settings[-1]}"
        return f"{', '.join(map(str, self.settings))} and multiples of {self.multiples}"


class Modules(Fact):
    """The modules a server adapts."""

    names: list[str]


class Server(Settings):
    """One server, as its code was on a day."""

    title: str
    version: str
    date: datetime.date
    """When its code was read."""
    tried: Tried
    """What was run and not only read: nothing, the code that reads or converts an adapter, or all of it."""
    model: Form
    gguf_model: Form
    gguf_adapter: Form
    adapter_start: list[str]
    """The commands that serve a PEFT adapter."""
    adapter_note: str | None
    ranks: Ranks | None
    """None if it has no limit."""
    modules: Modules | None
    """None if it takes every linear layer."""
    parts: dict[str, Fact] = Field(min_length=len(PARTS), max_length=len(PARTS))
    """What it does with each ``Part`` of an adapter."""


@cache
def read_servers() -> dict[ServerName, Server]:
    """The servers in the order of the file.

    Raises:
        pydantic.ValidationError: The file is not right; the installation is broken.
        ValueError: Likewise.
    """
    values = read_shipped("doratune.serving.servers", "servers.yaml")
    if tuple(values) != NAMES:
        raise ValueError(f"servers.yaml has {', '.join(values)}, not {', '.join(NAMES)}")
    servers: dict[ServerName, Server] = {name: Server.model_validate(values[name]) for name in NAMES}
    for name, server in servers.items():
        if strange := server.parts.keys() ^ set(PARTS):
            raise ValueError(f"servers.yaml, {name}: {', '.join(sorted(strange))}")
    return servers
