"""The base of every configuration: strict fields, and one clear error when they are wrong."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar, get_args

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, Strict, ValidationError
from pydantic_core import ErrorDetails

from doratune.errors import InputError, did_you_mean, first_of, shown

Positive = Annotated[int, Field(gt=0)]
SEEDS = 2**32
"""How many seeds there are: NumPy's generator takes no larger ones."""
Seed = Annotated[int, Field(ge=0, lt=SEEDS)]
LaxPath = Annotated[Path, Strict(False)]
Dtype = Literal["auto", "float32", "bfloat16", "float16"]
"""The values of ``--dtype``; ``models.precision`` defines auto."""


def _as_written(value: Any) -> Any:
    return ("off", "on")[value] if isinstance(value, bool) else value


OnOff = Annotated[Literal["on", "off"], BeforeValidator(_as_written)]
"""``on`` or ``off``, which YAML reads as booleans."""


class Settings(BaseModel):
    """A configuration: unknown keys, wrong types, NaN and infinities are errors."""

    model_config = ConfigDict(
        extra="forbid", strict=True, frozen=True, allow_inf_nan=False, use_attribute_docstrings=True
    )


Kind = TypeVar("Kind", bound=Settings)
RENAMED = {"limit": "eval_rows"}
"""What settings were called in earlier versions."""
REPLACED = {
    "rslora": "it is now a method: rslora, or dora-rslora",
    "norm_gradient": "it is now a method: dora-attached-norm",
}
"""What to use in place of settings of earlier versions."""
NAMED_FAULTS = 5
"""Lines of a message."""
NEXT_LINE = "\n       "
"""Below "got: "."""


def validate(kind: type[Kind], values: Mapping[str, Any], *, where: str) -> Kind:
    """Build a configuration, turning pydantic's errors into one.

    Args:
        kind: The settings class.
        values: Field values by name.
        where: Where the values came from, for the message, such as a preset's file.

    Returns:
        An instance of ``kind``.

    Raises:
        InputError: A key is unknown or a value is not allowed; the first few faults are listed.
    """
    try:
        return kind.model_validate(values)
    except ValidationError as error:
        lines = _faults(error, kind, values)
        more = len(lines) - NAMED_FAULTS
        if more > 0:
            lines[NAMED_FAULTS:] = [f"and {more} more"]
        raise InputError("the configuration is not valid", where=where, got=NEXT_LINE.join(lines)) from None


def _faults(error: ValidationError, kind: type[Settings], values: Mapping[str, Any]) -> list[str]:
    """What is wrong, a line for each kind of fault: one that comes in every entry of a list is one line."""
    missing: dict[str, list[str]] = {}
    unknown: dict[str, list[str]] = {}
    wrong: dict[str, tuple[list[str], Any]] = {}
    for fault in error.errors(include_url=False):
        loc = fault["loc"]
        if fault["type"] in ("missing", "extra_forbidden"):
            *parents, key = loc
            known = _model_at(kind, parents)
            if fault["type"] == "missing":
                missing.setdefault(_place(parents), []).append(str(key))
            else:
                question = _question(str(key), known.model_fields) if known else None
                text = f"unknown key {key!r}" + (f" ({question})" if question else "")
                unknown.setdefault(text, []).append(_place(parents))
        else:
            texts, _ = wrong.setdefault(_place(_within(values, loc)), ([], fault["input"]))
            texts.append(_text(fault))
    lines = [f"missing{_in([place])}: {', '.join(keys)}" for place, keys in missing.items()]
    lines += [text + _in(places) for text, places in unknown.items()]
    for place, (texts, value) in wrong.items():
        # A fault of the whole names its part itself.
        lines.append(f"{place}: {_either(texts)}, got {shown(value)}" if place else "; ".join(texts))
    return lines


def _text(fault: ErrorDetails) -> str:
    """What pydantic says, as it goes on after a place."""
    if fault["type"] == "too_short":
        least = fault.get("ctx", {}).get("min_length")
        return "should not be empty" if least == 1 else f"should have {least} entries or more"
    return fault["msg"].removeprefix("Input ").removeprefix("Value error, ")


def _question(key: str, known: Iterable[str]) -> str | None:
    names = list(known)
    if key in REPLACED:
        return REPLACED[key]
    renamed = RENAMED.get(key)
    return f"did you mean {renamed!r}?" if renamed in names else did_you_mean(key, names, form="{!r}")


def _either(texts: Sequence[str]) -> str:
    """Several texts such as "should be a valid list" as one."""
    first, *others = dict.fromkeys(texts)
    return " or ".join([first, *(text.removeprefix("should be ") for text in others)])


def _within(values: Any, loc: Sequence[int | str]) -> list[int | str]:
    """The part of a location that is in the input; pydantic adds the branches of a union that it tried."""
    found: list[int | str] = []
    for part in loc:
        try:
            values = values[part]
        except (KeyError, IndexError, TypeError):
            break
        found.append(part)
    return found or list(loc[:1])


def _place(loc: Sequence[int | str]) -> str:
    """("tasks", 0, "rows") as "tasks 1, rows": entries are counted from 1, as people count them."""
    text = ""
    for part in loc:
        text += f" {part + 1}" if isinstance(part, int) else f", {part}"
    return text.removeprefix(", ")


def _in(places: Sequence[str]) -> str:
    named = [place for place in places if place]
    return f" in {first_of(named)}" if named else ""


def _model_at(kind: type[BaseModel], loc: Sequence[int | str]) -> type[BaseModel] | None:
    """The settings class that describes a place in a configuration."""
    found: type[BaseModel] | None = kind
    for part in loc:
        if isinstance(part, str) and found is not None:
            field = found.model_fields.get(part)
            found = _model_in(field.annotation) if field else None
    return found


def _model_in(annotation: Any) -> type[BaseModel] | None:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    return next((model for one in get_args(annotation) if (model := _model_in(one)) is not None), None)
