"""Unknown flags, refused with the flag that was probably meant; missing ones; values of another type."""

from __future__ import annotations

import difflib
import re
from collections.abc import Collection
from typing import Any, get_args, get_origin

from pydantic import TypeAdapter, ValidationError

from doratune.cli.help import flag_name, is_positional
from doratune.errors import InputError
from doratune.settings import REPLACED, Settings

MEANT: dict[str, tuple[str, ...]] = {
    "lr": ("learning-rate",),
    "limit": ("eval-rows",),
    "batch-size": ("eval-batch-size",),
    "per-device-train-batch-size": ("micro-batch-size",),
    "per-device-eval-batch-size": ("eval-batch-size",),
    "train-batch-size": ("batch-size",),
    "max-steps": ("steps",),
    "num-epochs": ("epochs",),
    "num-train-epochs": ("epochs",),
    "warmup": ("warmup-steps",),
    "lr-scheduler-type": ("schedule",),
    "output-dir": ("output",),
    "out": ("output",),
    "base-model": ("model",),
    "model-name-or-path": ("model",),
    "adapter-name": ("method",),
    "data-path": ("data",),
    "dataset": ("task", "data"),
    "tasks": ("task",),
    "lora-r": ("rank",),
    "r": ("rank",),
    "lora-alpha": ("alpha",),
    "lora-dropout": ("dropout",),
    "target-modules": ("targets",),
    "cutoff-len": ("cutoff",),
    "max-length": ("cutoff",),
    "val-set-size": ("validation-share",),
    "use-gradient-checkpointing": ("gradient-checkpointing",),
    "load-4bit": ("load-in-4bit",),
    "bf16": ("dtype",),
    "fp16": ("dtype",),
    "resume-from-checkpoint": ("resume",),
}
"""Flags of other programs and of earlier versions, with their names here."""


def refuse_unknown_flags(kind: type[Settings], argv: list[str], *, verb: str) -> None:
    """Refuse flags that a verb does not have; all of them in one message.

    Args:
        kind: The verb's settings.
        argv: The arguments after the verb.
        verb: Its name.

    Raises:
        InputError: A flag is unknown.
    """
    known = [flag_name(name, one) for name, one in kind.model_fields.items() if not is_positional(one)]
    switches = [f"no-{name}" for name in known]
    given = _flags(argv)
    unknown = [flag for flag in dict.fromkeys(given) if _name(flag) not in {*known, *switches}]
    if not unknown:
        return
    meant = {flag: _meant(_name(flag), known) for flag in unknown}
    found = [flag for flag in unknown if meant[flag]]
    replaced = {flag: REPLACED.get(_name(flag).replace("-", "_")) for flag in unknown}
    if any(replaced.values()):
        fix = "; ".join(f"{flag}: {what}" for flag, what in replaced.items() if what)
    elif found and len(unknown) == 1:
        fix = f"did you mean {meant[found[0]]}?"
    elif found:
        fix = "did you mean " + ", ".join(f"{meant[flag]} for {flag}" for flag in found) + "?"
    else:
        fix = f"doratune {verb} --help lists the flags"
    raise InputError(
        "unknown flag" if len(unknown) == 1 else "unknown flags",
        where=f"doratune {verb}",
        got=" ".join(unknown),
        fix=fix,
    )


def refuse_missing_flags(
    kind: type[Settings], argv: list[str], needed: Collection[str], *, verb: str
) -> None:
    """Refuse a command without flags that it needs; all of them in one message.

    Args:
        kind: The verb's settings.
        argv: The arguments after the verb.
        needed: Names of settings without a value so far.
        verb: Its name.

    Raises:
        InputError: There are some.
    """
    given = {_name(flag) for flag in _flags(argv)}
    named = {name: flag_name(name, one) for name, one in kind.model_fields.items() if not is_positional(one)}
    missing = [flag for name, flag in named.items() if name in needed and flag not in given]
    if missing:
        raise InputError(
            "a flag is missing" if len(missing) == 1 else "flags are missing",
            where=f"doratune {verb}",
            expected=" and ".join(f"--{flag}" for flag in missing),
            fix=f"doratune {verb} --help says what it takes",
        )


def refuse_repeated_flags(kind: type[Settings], argv: list[str], *, verb: str) -> None:
    """Refuse a flag of several values that is given twice: its first values would not count.

    Of a flag with one value the last counts, as everywhere: scripts override their defaults so.

    Args:
        kind: The verb's settings.
        argv: The arguments after the verb.
        verb: Its name.

    Raises:
        InputError: There is one.
    """
    names = [_name(flag) for flag in _flags(argv)]
    several = {
        flag_name(name, one) for name, one in kind.model_fields.items() if _takes_several(one.annotation)
    }
    if repeated := [name for name in dict.fromkeys(names) if names.count(name) > 1 and name in several]:
        raise InputError(
            "a flag is given twice",
            where=f"doratune {verb}",
            got=f"--{repeated[0]}",
            fix="give it once, with all its values",
        )


def refuse_empty_values(argv: list[str], *, verb: str) -> None:
    """Refuse a value without a character, which is what a shell makes of a variable that is not set.

    Args:
        argv: The arguments after the verb.
        verb: Its name.

    Raises:
        InputError: There is one.
    """
    before = [f"doratune {verb}", *argv]
    empty = [flag for flag, word in zip(before, argv, strict=False) if not word.strip()]
    empty += [word.rstrip("=") for word in argv if re.fullmatch(r"--[^=]+=\s*", word)]
    if empty:
        raise InputError(
            "a value is empty",
            where=f"doratune {verb}",
            got=f"nothing after {empty[0]}",
            fix="give a value, or leave the flag out; a shell variable in its place may not be set",
        )


def refuse_wrong_values(kind: type[Settings], argv: list[str], *, verb: str) -> None:
    """Refuse a value of another type than its flag's, such as a word for a number.

    tyro would name every type that it tried, as Python writes it.

    Args:
        kind: The verb's settings.
        argv: The arguments after the verb.
        verb: Its name.

    Raises:
        InputError: There is one.
    """
    named = {flag_name(name, one): one for name, one in kind.model_fields.items() if not is_positional(one)}
    for flag, words in _values(argv).items():
        field = named.get(flag)
        if field is None or field.annotation is bool:
            continue
        taken: Any = field.rebuild_annotation()
        adapter: TypeAdapter[Any] = TypeAdapter(taken)
        several = _takes_several(field.annotation)
        for word in words if several else words[:1]:
            expected = None if word == "None" else _misfit(adapter, [word] if several else word)
            if expected is not None:
                raise InputError(
                    "a value does not fit its flag",
                    where=f"doratune {verb} --{flag}",
                    got=word,
                    expected=expected,
                )


_OF_A_TYPE = re.compile(r"literal_error|.*_(parsing|type|from_float)(_\w+)?")
"""pydantic's names of faults that are not about how large or long a value is."""


def _misfit(adapter: TypeAdapter[Any], value: str | list[str]) -> str | None:
    """What a value should be; None if it is of a right type."""
    try:
        adapter.validate_python(value, strict=False)
    except ValidationError as error:
        faults = error.errors(include_url=False)
        if all(_OF_A_TYPE.fullmatch(one["type"]) for one in faults):
            wanted = [one["msg"].removeprefix("Input should be ").partition(", unable")[0] for one in faults]
            return " or ".join(dict.fromkeys(wanted))
    return None


def _takes_several(annotation: Any) -> bool:
    return get_origin(annotation) in (list, tuple) or any(map(_takes_several, get_args(annotation)))


def _values(argv: list[str]) -> dict[str, list[str]]:
    """The words after each flag."""
    found: dict[str, list[str]] = {}
    words: list[str] = []
    for word in argv:
        if word.startswith("--") and len(word) > 2:
            flag, joined, value = word.partition("=")
            words = found[_name(flag)] = [value] if joined else []
        else:
            words.append(word)
    return found


def _flags(argv: list[str]) -> list[str]:
    return [word.partition("=")[0] for word in argv if word.startswith("--") and len(word) > 2]


def _name(flag: str) -> str:
    """Flags may be written with underscores, as tyro takes them."""
    return flag.removeprefix("--").replace("_", "-")


def _meant(name: str, known: list[str]) -> str | None:
    there = [one for one in MEANT.get(name, ()) if one in known]
    near = there or difflib.get_close_matches(name, known, n=1, cutoff=0.6)
    return " or ".join(f"--{one}" for one in near) or None
