"""Decides which servers load something, and which command makes something that they load; no torch."""

from __future__ import annotations

import shlex
from collections.abc import Iterable, Iterator
from pathlib import Path

from doratune.models.builtin import BUILTIN
from doratune.records.servers import (
    Answer,
    Obstacle,
    Part,
    ServedContents,
    ServerAnswer,
    ServerName,
    ServingCheck,
    ServingWay,
)
from doratune.serving.servers.contents import MEANINGS, read_contents
from doratune.serving.servers.facts import Fact, Form, Server, read_servers

NEW_RANK = 64
"""The rank of a conversion in a suggested command."""
CONVERTED: frozenset[Part] = frozenset(
    {"dora", "rslora", "rank_pattern", "alpha_pattern", "changed_base", "no_bias", "expression", "apart"}
)
"""Parts that an adapter no longer has after ``doratune convert``."""
NOT_CONVERTED: frozenset[Part] = frozenset({"lora_bias", "convolution", "parameters", "replication"})
"""Parts that ``doratune convert`` refuses."""
NAMED_BY_PART = ("embed_tokens", "lm_head")
"""Modules that are a ``Part`` of an adapter, whose fact decides."""


def check_serving(target: str) -> ServingCheck:
    """Which servers load a run, an adapter, a model or a GGUF file, and what to do where one does not.

    Args:
        target: A run directory, an adapter's or a model's folder, or a GGUF file.

    Returns:
        The servers' answers, from what was read in their code (``servers.yaml``): none is asked.

    Raises:
        InputError: ``target`` is nothing of that, is not finished, or cannot be read.
    """
    contents = read_contents(target)
    answers = [_answer(name, contents, target) for name in read_servers()]
    return ServingCheck(target=target, contents=contents, servers=answers)


def _answer(name: ServerName, contents: ServedContents, target: str) -> ServerAnswer:
    server = read_servers()[name]
    obstacles = list(_obstacles(server, contents))
    loads: Answer = "yes" if not obstacles else "wrongly" if all(one.ignored for one in obstacles) else "no"
    return ServerAnswer(
        server=name,
        title=server.title,
        version=server.version,
        read=server.date,
        tried=server.tried,
        loads=loads,
        obstacles=obstacles,
        note=server.adapter_note if contents.kind == "adapter" else None,
        start=_start(server, contents, _name(contents, target)) if loads == "yes" else [],
        ways=[] if loads == "yes" else list(_ways(server, contents, target)),
    )


def _name(contents: ServedContents, target: str) -> str:
    """What to call it in a server."""
    return Path(_place(contents.run or target)).name.removesuffix(".gguf")


def _place(path: str) -> str:
    """A path that ends in a name, as the user wrote it where that does."""
    place = Path(path)
    return str(place.resolve()) if place.name in ("", "..") else path.rstrip("/")


def _obstacles(server: Server, contents: ServedContents) -> Iterator[Obstacle]:
    """What in ``contents`` a server refuses or ignores."""
    if contents.kind != "adapter":
        form: Form = getattr(server, contents.kind)
        if form.does != "takes":
            yield Obstacle(what=form.because or "", ignored=form.does == "ignores", where=form.where)
        elif form.architectures and contents.architecture not in (None, *form.architectures):
            yield Obstacle(what=f"the architecture {contents.architecture}", ignored=False, where=form.where)
        return
    for part in contents.parts:
        if (fact := server.parts[part]).does != "takes":
            yield _obstacle(fact, MEANINGS[part])
    if server.ranks is not None:
        for rank in contents.ranks:
            if server.ranks.setting_for(rank) is None:
                what = "the scaling" if server.ranks.does == "ignores" else "A and B"
                yield _obstacle(server.ranks, f"{what} of rank {rank} (right: {server.ranks.described})")
    if server.modules is not None:
        for module in sorted(set(contents.modules) - {*server.modules.names, *NAMED_BY_PART}):
            yield _obstacle(server.modules, f"LoRA of {module}")


def _obstacle(fact: Fact, what: str) -> Obstacle:
    return Obstacle(what=what, ignored=fact.does == "ignores", where=fact.where)


def _start(server: Server, contents: ServedContents, name: str) -> list[str]:
    """The commands that serve ``contents`` as ``name``."""
    if contents.kind == "adapter":
        return _adapter_start(server, contents.path, name, contents.base, max(contents.ranks, default=1))
    return _filled(getattr(server, contents.kind).start, name, model=contents.path)


def _adapter_start(server: Server, adapter: str, name: str, base: str | None, rank: int) -> list[str]:
    setting = server.ranks.setting_for(rank) if server.ranks else None
    return _filled(server.adapter_start, name, adapter=adapter, base=base, rank=setting)


def _filled(
    lines: Iterable[str],
    name: str,
    *,
    model: str = "",
    adapter: str = "",
    base: str | None = None,
    rank: int | None = None,
) -> list[str]:
    """Commands with their names filled in, quoted for a shell, or for Python (``_text``)."""
    place = Path(model)
    words = {"name": name, "model": model, "adapter": adapter, "gguf": f"{name}-adapter.gguf"}
    texts = {"model": model, "adapter": adapter, "folder": str(place.parent), "file": place.name}
    is_gguf = base is not None and base.endswith(".gguf")
    values = {key: shlex.quote(word) for key, word in words.items()}
    values |= {f"{key}_text": repr(text) for key, text in texts.items()}
    values |= {"rank": str(rank), "base_gguf": shlex.quote(base) if is_gguf and base else "BASE.gguf"}
    known = None if is_gguf else base
    values |= {"base": "BASE", "base_text": repr("BASE")} if known is None else _base_words(known)
    return [line.format_map(values) for line in lines]


def _base_words(base: str) -> dict[str, str]:
    """The base model for a shell and for Python. Other programs need the folder of a built-in model."""
    if base not in BUILTIN:
        return {"base": shlex.quote(base), "base_text": repr(base)}
    look_up = f"doratune models --path {base}"
    return {"base": f'"$({look_up})"', "base_text": repr(f"FOLDER: {look_up}")}


def _ways(server: Server, contents: ServedContents, target: str) -> Iterator[ServingWay]:
    """What to make so that a server loads it, exact ones first."""
    if contents.kind == "model" and server.gguf_model.does == "takes":
        folder, file = shlex.quote(contents.path), f"{_place(contents.path)}.gguf"
        yield ServingWay(
            makes="a GGUF file, by a script in llama.cpp's repository",
            command=f"python convert_hf_to_gguf.py --outfile {shlex.quote(file)} {folder}",
            start=_filled(server.gguf_model.start, _name(contents, target), model=file),
        )
    if contents.kind != "adapter":
        return
    beside = _place(contents.run or target)
    name, run = _name(contents, target), shlex.quote(beside)
    if contents.in_4bit and contents.base is not None:
        run += f" --base {shlex.quote(contents.base)}"
    if server.model.does == "takes":
        merged = f"{beside}-merged"
        yield ServingWay(
            makes="a merged model",
            command=f"doratune merge {run} --output {shlex.quote(merged)}",
            start=_filled(server.model.start, name, model=merged),
        )
    if server.gguf_model.does == "takes" and (server.model.does != "takes" or server.model.architectures):
        gguf, of_base = f"{beside}.gguf", _of_gguf(contents.base)
        yield ServingWay(
            makes="a merged model as GGUF",
            command=f"doratune export {run} --to gguf{of_base} --output {shlex.quote(gguf)}",
            start=_filled(server.gguf_model.start, name, model=gguf),
        )
    if _is_convertible(server, contents):
        lora = f"{beside}-lora"
        yield ServingWay(
            makes=f"a LoRA of rank {NEW_RANK}, which is an approximation",
            command=f"doratune convert {run} --to lora --rank {NEW_RANK} --output {shlex.quote(lora)}",
            start=_adapter_start(server, lora, name, contents.base, NEW_RANK),
        )


def _of_gguf(base: str | None) -> str:
    """The flag of ``doratune export`` about the base's GGUF file: that of a built-in model has 4 bits."""
    if base in BUILTIN:
        return " --requantize Q8_0"
    return "" if base is not None and base.endswith(".gguf") else " --base-gguf BASE.gguf"


def _is_convertible(server: Server, contents: ServedContents) -> bool:
    """Whether ``doratune convert`` makes an adapter of it that the server takes."""
    parts = set(contents.parts)
    if parts & NOT_CONVERTED:
        return False
    left = contents.model_copy(update={"parts": sorted(parts - CONVERTED), "ranks": [NEW_RANK]})
    return not list(_obstacles(server, left))
