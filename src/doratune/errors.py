"""The base error and its kinds. A message says what is wrong, where, got, expected and what to do."""

from __future__ import annotations

import os
from collections.abc import Collection, Iterable

NAMED = 3
"""The most names that a message lists."""
LONGEST = 500
"""The most characters of a value that a message shows."""


class DoratuneError(Exception):
    """An error that stops doratune; the command line exits with 1.

    Args:
        what: What is wrong, as one short sentence without a full stop.
        where: The file (with row, line or column), option or layer it was found in.
        got: The value that was found.
        expected: What would be right.
        fix: What the user can do, as an imperative.
    """

    exit_code = 1

    def __init__(
        self,
        what: str,
        *,
        where: str | None = None,
        got: object = None,
        expected: str | None = None,
        fix: str | None = None,
    ) -> None:
        self.what = what
        self.where = where
        self.got = got if got is None or isinstance(got, str) else shown(got)
        self.expected = expected
        self.fix = fix
        super().__init__(self.message)

    @property
    def message(self) -> str:
        """The whole message: the first line says what is wrong, indented lines say the rest."""
        details = (
            ("where", self.where),
            ("got", self.got),
            ("expected", self.expected),
            ("to do", self.fix),
        )
        return "\n".join([self.what, *(f"  {key}: {value}" for key, value in details if value is not None)])


class InputError(DoratuneError):
    """The user's input (an argument, a file, a folder) cannot be used; the command line exits with 2."""

    exit_code = 2


class StoppedError(DoratuneError):
    """A signal ended the work in an orderly way: what is done is kept, and the rest can be resumed.

    The command line exits with 128 plus the signal's number.

    Args:
        number: The signal's number.
        what: What was stopped.
        where: The folder with the finished part.
        fix: How to resume.
    """

    def __init__(self, number: int, what: str, *, where: str | None = None, fix: str | None = None) -> None:
        self.exit_code = 128 + number
        super().__init__(what, where=where, fix=fix)


class DivergedError(DoratuneError):
    """Training reached a loss, a gradient or a parameter that is not finite, and stopped there."""


class OtherProcessError(DoratuneError):
    """Another process of the same launch failed. That one shows the error; the command line prints none here.

    Args:
        index: Which process it was; None if that is not known.
        message: What it said.
        exit_code: What it exits with, and so does this one.
    """

    def __init__(self, index: int | None, message: str, *, exit_code: int = 1) -> None:
        self.exit_code = exit_code
        super().__init__(message if index is None else f"process {index}: {message}")


def shown(value: object) -> str:
    """A value as a message shows it, cut if long: with YAML's aliases a value can exceed any memory."""
    import reprlib

    if isinstance(value, os.PathLike | BaseException):
        return str(value)[:LONGEST]
    if isinstance(value, int) and value.bit_length() > LONGEST:  # Python may refuse to print it
        return f"an integer of {value.bit_length()} bits"
    short = reprlib.Repr()
    short.maxlevel, short.maxstring, short.maxother = 3, LONGEST, LONGEST
    return short.repr(value)


def first_of(names: Collection[str]) -> str:
    """The first few names, and how many more there are."""
    more = f" and {len(names) - NAMED} more" if len(names) > NAMED else ""
    return ", ".join(list(names)[:NAMED]) + more


def did_you_mean(name: str, known: Iterable[str], *, form: str = "{}") -> str | None:
    """The suggestion for an unknown name.

    Args:
        name: The name the user gave.
        known: The names that exist.
        form: How the suggestion is written, with braces for the name.

    Returns:
        "did you mean ...?" with the closest known name, or None if none is close.
    """
    import difflib

    matches = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    return f"did you mean {form.format(matches[0])}?" if matches else None
