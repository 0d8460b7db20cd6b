"""A fault in a field of a task's file, for one short message."""

from __future__ import annotations

from string import Formatter


class Unfit(ValueError):  # noqa: N818 - pydantic reports a ValueError as a fault of the data
    """A field has a value that a definition does not allow.

    Args:
        field: Its dotted name, relative to the checked part.
        expected: What would be right.
        got: What was found; None: the field's value.
    """

    def __init__(self, field: str, expected: str, *, got: str | None = None) -> None:
        self.field = field
        self.expected = expected
        self.got = got
        super().__init__(f"{field}: expected {expected}")


def columns(template: str) -> list[str]:
    """The names in braces in a text, in order; an empty list if the braces do not match.

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
