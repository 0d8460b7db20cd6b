"""Arguments of a verb: tyro reads the flags, which override a preset, and pydantic checks the result."""

from __future__ import annotations

import argparse
import os
import shlex
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, TypeVar

# pydantic reads this when it is imported; its links are no help at a terminal.
os.environ.setdefault("PYDANTIC_ERRORS_INCLUDE_URL", "0")

import tyro

from doratune.settings import Settings
from doratune.training.presets import preset_names

PresetName = Annotated[
    str | None, tyro.conf.arg(help=f"{', '.join(preset_names())}, or a YAML file; flags override it.")
]
AsJson = Annotated[bool, tyro.conf.arg(name="json")]
"""The flag ``--json``."""
Kind = TypeVar("Kind", bound=Settings)


def parse(
    kind: type[Kind], argv: list[str], *, verb: str, about: str, defaults: Mapping[str, Any] | None = None
) -> Kind:
    """Read the flags of a verb.

    Args:
        kind: The verb's settings; field docstrings are the help.
        argv: The arguments after the verb.
        verb: Its name.
        about: What ``--help`` shows above the options: what it does, and examples.
        defaults: Values of a preset, already checked; flags override them.

    Returns:
        The settings. Wrong flags end the process with exit code 2 and one message.
    """
    required = {name: tyro.MISSING for name, field in kind.model_fields.items() if field.is_required()}
    default = kind.model_construct(**{**required, **(defaults or {})})
    return tyro.cli(kind, args=argv, default=default, prog=f"doratune {verb}", description=about)


def part(kind: type[Kind], command: Settings) -> Kind:
    """The fields of ``kind`` out of the settings of a verb, which add flags to them."""
    return kind(**command.model_dump(include=set(kind.model_fields)))


def command_line(verb: str, argv: list[str], *, without: Sequence[str] = ("--json",)) -> str:
    """The command as a shell reads it, for "reproduce" in a record, without some flags."""
    return shlex.join(["doratune", verb, *(word for word in argv if word not in without)])


def peek(argv: list[str], *flags: str) -> dict[str, str | None]:
    """The values of some flags, before the whole line can be parsed.

    Args:
        argv: The arguments after the verb.
        *flags: Names without dashes.

    Returns:
        A value or None for each.
    """
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False, exit_on_error=False)
    for flag in flags:
        parser.add_argument(f"--{flag}", nargs="?")
    known, _ = parser.parse_known_args(argv)
    return vars(known)
