"""What is wrong with a field of a task's file, for one short message."""

from __future__ import annotations

from string import Formatter


class Unfit(ValueError):  # noqa: N818 - pydantic takes a ValueError for a fault of the data
    """A field that a definition cannot have.

    Args:
        field: Its name below what is being checked, with dots.
        expected: What would be right.
        got: What was found; None: the field's value.
    """

    def __init__(self, field: str, expected: str, *, got: str | None = None) -> None:
        self.field = field
        self.expected = expected
        self.got = got
        super().__init__(f"{field}: expected {expected}")


def columns(template: str) -> list[str]:
    """The names in braces of a text, in order; an empty list where the braces do not match.

    A conversion or format, as in ``{text!r}`` and ``{text:>9}``, is not a name.
    """
    try:
        found = list(Formatter().parse(template))
    except ValueError:
        return []
    return [
        name + (f"!{conversion}" if conversion else "") + (f":{spec}" if spec else "")
        for _, name, spec, conversion in found
        if name is not None
    ]
