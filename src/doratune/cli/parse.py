"""Arguments of a verb: tyro reads the flags, which override a preset, and pydantic checks the result."""

from __future__ import annotations

import argparse
import os
import shlex
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, TypeVar

# pydantic reads this when it is imported; its links do not help in a terminal.
os.environ.setdefault("PYDANTIC_ERRORS_INCLUDE_URL", "0")

import tyro
from pydantic import ValidationError

from doratune.cli.flags import (
    refuse_empty_values,
    refuse_missing_flags,
    refuse_repeated_flags,
    refuse_unknown_flags,
    refuse_wrong_values,
)
from doratune.cli.help import help_text
from doratune.settings import Settings, validate
from doratune.training.presets import preset_names

PresetName = Annotated[
    str | None, tyro.conf.arg(help=f"{', '.join(preset_names())}, or a YAML file; flags override it.")
]
AsJson = Annotated[bool, tyro.conf.arg(name="json")]
"""The flag ``--json``."""
Kind = TypeVar("Kind", bound=Settings)


def parse(
    kind: type[Kind],
    argv: list[str],
    *,
    verb: str,
    about: str,
    first: Sequence[str] = (),
    defaults: Mapping[str, Any] | None = None,
) -> Kind:
    """Read the flags of a verb.

    Args:
        kind: The verb's settings; field docstrings are the help.
        argv: The arguments after the verb.
        verb: Its name.
        about: What ``--help`` shows above the options: what it does, and examples.
        first: The settings that everyone needs; ``--help`` shows the others in groups below them.
        defaults: Values of a preset, already checked; flags override them.

    Returns:
        The settings. ``--help`` ends the process.

    Raises:
        InputError: A flag is unknown or missing, or a value is of another type or not allowed.
    """
    if "-h" in argv or "--help" in argv:
        print(help_text(kind, verb=verb, about=about, first=first, defaults=defaults), end="")
        raise SystemExit(0)
    refuse_unknown_flags(kind, argv, verb=verb)
    refuse_repeated_flags(kind, argv, verb=verb)
    refuse_empty_values(argv, verb=verb)
    required = {name: tyro.MISSING for name, field in kind.model_fields.items() if field.is_required()}
    refuse_missing_flags(kind, argv, required.keys() - (defaults or {}).keys(), verb=verb)
    refuse_wrong_values(kind, argv, verb=verb)
    told = _with_one_message(kind, where=f"the flags of doratune {verb}")
    default = told.model_construct(**{**required, **(defaults or {})})
    found = tyro.cli(told, args=argv, default=default, prog=f"doratune {verb}", description=about)
    return kind.model_construct(**{name: getattr(found, name) for name in kind.model_fields})


def _with_one_message(kind: type[Kind], *, where: str) -> type[Kind]:
    """``kind`` with InputError in place of pydantic's errors, whose text tyro would print in a box."""

    def check(self: Settings, **values: Any) -> None:
        try:
            super(told, self).__init__(**values)
        except ValidationError:
            validate(kind, values, where=where)

    told: Any = type(
        kind.__name__, (kind,), {"__init__": check, "__doc__": kind.__doc__, "__module__": kind.__module__}
    )
    return told


def part(kind: type[Kind], command: Settings) -> Kind:
    """The fields of ``kind`` in the settings of a verb, which has more flags."""
    return kind(**command.model_dump(include=set(kind.model_fields)))


def command_line(verb: str, argv: list[str], *, without: Sequence[str] = ("--json",)) -> str:
    """The command as typed in a shell, without some flags, for "reproduce" in a record."""
    return shlex.join(["doratune", verb, *(word for word in argv if word not in without)])


def print_list(described: Mapping[str, str]) -> None:
    """Print names with their descriptions, one per line."""
    width = max(map(len, described))
    for name, what in described.items():
        print(f"{name:{width}}  {what}")


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
