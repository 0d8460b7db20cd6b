"""The help of a verb: what it does, and its flags in groups, the most needed ones first."""

from __future__ import annotations

import re
import shutil
import textwrap
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal, get_args, get_origin

import tyro
from pydantic.fields import FieldInfo

from doratune.settings import Settings

GROUPS: dict[str, tuple[str, ...]] = {
    "data": (
        *("task", "data", "test_data", "format", "rows", "eval_rows", "split", "validation_rows"),
        *("validation_share", "cutoff", "drop_long_rows", "loss_on"),
    ),
    "model": ("target", "model", "base", "allow_other_base", "trust_remote_code"),
    "adapter": ("method", "methods", "rank", "alpha", "dropout", "targets"),
    "optimisation": (
        *("learning_rate", "learning_rates", "schedule", "warmup_steps", "weight_decay", "epochs", "steps"),
        *("batch_size", "on_nonfinite", "seed", "seeds"),
    ),
    "after training": ("run", "to", "max_kl", "exact", "dequantised", "weights", "check_data"),
    "evaluation": ("protocol", "harness", "text"),
    "memory and speed": (
        *("dtype", "load_in_4bit", "micro_batch_size", "eval_batch_size", "gradient_checkpointing"),
        *("device_map", "engine", "speedups"),
    ),
    "settings from a file": ("preset", "config"),
    "dry run": ("dry_run", "device", "processes", "sharding"),
    "output": ("output", "resume", "overwrite", "save_steps", "keep_checkpoints", "report_to", "as_json"),
}
"""The groups of flags, by the name of their setting. A name means the same in every verb."""
FIRST = "essentials"
LEFT = 26
"""Columns of a flag's name."""
WIDEST = 110
EXAMPLES = "Examples:\n"
CONTINUED = r"\n {12,}"
"""How an example goes on on the next line where it is written."""

SWITCHED_OFF = "--no-NAME switches off what a preset has switched on."
EXIT_CODES = (
    "Exit codes: 0 done, 1 failure, 2 the input cannot be used, 130 ended by Ctrl-C, 143 ended by SIGTERM."
)


def help_text(
    kind: type[Settings],
    *,
    verb: str,
    about: str,
    first: Sequence[str] = (),
    defaults: Mapping[str, Any] | None = None,
) -> str:
    """What ``doratune VERB --help`` prints.

    Args:
        kind: The verb's settings; field docstrings are the help.
        verb: Its name.
        about: What it does, and examples; both are wrapped to the terminal.
        first: The settings that everyone needs, in order; if there are none, the flags are not grouped.
        defaults: Values of a preset.
    """
    width = min(shutil.get_terminal_size().columns, WIDEST)
    words = [_argument(name, field) for name, field in kind.model_fields.items() if is_positional(field)]
    parts = [f"usage: {' '.join(['doratune', verb, *words])} [options]\n\n{_wrapped(about, width)}"]
    for title, names in grouped(kind, first).items():
        lines = [
            line
            for name in names
            for line in _lines(name, kind.model_fields[name], (defaults or {}).get(name), width)
        ]
        parts.append("\n".join([f"{title}:", *lines, ""]))
    foot = [SWITCHED_OFF] if "preset" in kind.model_fields else []
    return "\n".join([*parts, *(textwrap.fill(line, width) for line in [*foot, EXIT_CODES]), ""])


def grouped(kind: type[Settings], first: Sequence[str]) -> dict[str, list[str]]:
    """The settings of a verb by group, each once; one group where ``first`` is empty.

    Raises:
        KeyError: A setting has no group.
    """
    if not first:
        return {"options": list(kind.model_fields)} if kind.model_fields else {}
    group_of = {name: group for group, names in GROUPS.items() for name in names}
    found: dict[str, list[str]] = {FIRST: [*first], **{group: [] for group in GROUPS}}
    for name in sorted(kind.model_fields.keys() - set(first), key=list(group_of).index):
        found[group_of[name]].append(name)
    return {group: names for group, names in found.items() if names}


def flag_name(name: str, field: FieldInfo) -> str:
    """A setting's name on the command line, without dashes."""
    given = [one.name for one in field.metadata if getattr(one, "name", None)]
    return given[0] if given else name.replace("_", "-")


def is_positional(field: FieldInfo) -> bool:
    """Whether a setting is given without a flag."""
    return tyro.conf.Positional in field.metadata


def _argument(name: str, field: FieldInfo) -> str:
    """An argument in the line of usage, in brackets where it may be left out."""
    word = flag_name(name, field).upper()
    return word if field.is_required() else f"[{word}]"


def _wrapped(about: str, width: int) -> str:
    """What a verb does, and its examples: in a long one a backslash ends each line but the last."""
    prose, _, examples = about.partition(EXAMPLES)
    paragraphs = [textwrap.fill(" ".join(one.split()), width) for one in prose.strip().split("\n\n")]
    commands = re.sub(CONTINUED, " ", examples.strip("\n")).splitlines()
    return "\n".join(
        ["\n\n".join(paragraphs), "", EXAMPLES.rstrip(), *(_example(one, width) for one in commands), ""]
    )


def _example(command: str, width: int) -> str:
    """A command on as many lines as it needs, broken in front of flags, so that it can be copied."""
    first, *flags = command.rstrip().split(" --")
    lines = [first]
    for flag in flags:
        if len(lines[-1]) + len(f" --{flag} \\") <= width:
            lines[-1] += f" --{flag}"
        else:
            lines.append(f"    --{flag}")
    return " \\\n".join(lines)


def _lines(name: str, field: FieldInfo, preset: object, width: int) -> list[str]:
    """A flag: its name, the value it takes, and what it does."""
    flag, value = flag_name(name, field), _metavar(field.annotation)
    if is_positional(field):
        left = flag.upper()
    elif value is None:
        left = f"--{flag}, --no-{flag}" if field.default is True else f"--{flag}"
    else:
        left = f"--{flag} {value}"
    given = [one.help for one in field.metadata if getattr(one, "help", None)]
    text = given[0] if given else field.description or ""
    # None in a docstring means that the flag is not given.
    text = " ".join([*text.replace("None: ", "default: ").split(), *_note(field, preset)])
    lines = textwrap.wrap(text, width - LEFT - 2, break_long_words=False, break_on_hyphens=False) or [""]
    head, margin = f"  {left}", " " * LEFT
    if len(head) > LEFT:
        return [head, *(f"{margin}  {line}" for line in lines)]
    return [f"{head:{LEFT}}  {lines[0]}", *(f"{margin}  {line}" for line in lines[1:])]


def _note(field: FieldInfo, preset: object) -> list[str]:
    """The end of a flag's help: its default, or that it is required."""
    if field.is_required() and preset is None:
        return ["(required)"]
    default = field.get_default(call_default_factory=True) if preset is None else preset
    if default is True:
        return ["(default: on)"]
    if default is None or default is False or default == []:
        return []
    shown = " ".join(map(str, default)) if isinstance(default, list) else str(default)
    return [f"(default: {shown})"]


def _metavar(annotation: Any) -> str | None:
    """What a flag takes, in words; None for a switch."""
    if get_origin(annotation) is Annotated:
        return _metavar(get_args(annotation)[0])
    if get_origin(annotation) is Literal:
        return "{" + ",".join(map(str, get_args(annotation))) + "}"
    if get_origin(annotation) is list:
        return f"{_metavar(get_args(annotation)[0])} ..."
    inner = [one for one in get_args(annotation) if one is not type(None)]
    if inner:
        return _metavar(inner[0])
    names = {bool: None, int: "N", float: "X", str: "NAME"}
    return names.get(annotation, "PATH")
