"""What ``doratune check-serving`` prints with --json: which servers load something, and what to do."""

from __future__ import annotations

import datetime
from typing import Literal

from doratune.records.base import Record
from doratune.records.run import Count

ServerName = Literal["vllm", "sglang", "tgi", "llama-cpp", "ollama", "transformers"]
ServedKind = Literal["adapter", "model", "gguf_model", "gguf_adapter"]
Answer = Literal["yes", "no", "wrongly"]
Tried = Literal["nothing", "reader", "converter", "all"]
Part = Literal[
    "dora",
    "rslora",
    "rank_pattern",
    "alpha_pattern",
    "changed_base",
    "bias",
    "no_bias",
    "lora_bias",
    "saved_modules",
    "saved_norms",
    "tokens",
    "embedding",
    "head",
    "convolution",
    "parameters",
    "replication",
    "invocation",
    "variant",
    "expression",
    "some_layers",
    "apart",
]
"""What an adapter may have besides A and B of linear layers, as ``serving/servers/contents.py`` explains."""


class Obstacle(Record):
    """Something that a server does not take."""

    what: str  #: what it is, and the key of adapter_config.json it comes from
    ignored: bool  #: whether the server loads the adapter without it, and so answers wrongly
    where: str | None  #: the server's file in which that was read


class ServingWay(Record):
    """A command that makes something a server loads."""

    makes: str  #: what it makes
    command: str  #: for a shell
    start: list[str]  #: the commands that then serve it


class ServerAnswer(Record):
    """One server's answer."""

    server: ServerName  #: its name in servers.yaml
    title: str  #: its name
    version: str  #: version or commit that was read
    read: datetime.date  #: when its code was read
    tried: Tried
    #: what was run and not only read: nothing, the code that reads or that converts an adapter, or all
    loads: Answer  #: "wrongly" if it loads and leaves something out without an error
    obstacles: list[Obstacle]  #: why not
    note: str | None  #: what else to know
    start: list[str]  #: the commands that serve it; empty unless it loads
    ways: list[ServingWay]  #: what to make instead; empty if it loads


class ServedContents(Record):
    """What is to be served."""

    kind: ServedKind  #: a PEFT adapter, a transformers folder, or a GGUF file of either
    run: str | None  #: the run directory it is in
    path: str  #: the folder or file that a server is given
    ranks: list[Count]  #: ranks of an adapter's layers, ascending; empty for a model
    modules: list[str]  #: names of an adapter's modules without their place
    parts: list[Part]  #: what else an adapter has
    in_4bit: bool = False  #: whether it is the adapter of a run in 4 bits, whose base has to be named
    base: str | None  #: an adapter's base model, as far as it says
    architecture: str | None  #: a model's, from its config.json


class ServingCheck(Record):
    """Which servers load a run, an adapter, a model or a GGUF file."""

    target: str  #: what the user named
    contents: ServedContents  #: what was found there
    servers: list[ServerAnswer]  #: in the order of servers.yaml
