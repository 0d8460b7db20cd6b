"""The base of every configuration: strict fields, and one clear error when they are wrong."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, Strict, ValidationError

from doratune.errors import InputError, did_you_mean, shown

Positive = Annotated[int, Field(gt=0)]
LaxPath = Annotated[Path, Strict(False)]
Dtype = Literal["auto", "float32", "bfloat16", "float16"]
"""The values of ``--dtype``; ``models.precision`` defines auto."""


def _as_written(value: Any) -> Any:
    return ("off", "on")[value] if isinstance(value, bool) else value


OnOff = Annotated[Literal["on", "off"], BeforeValidator(_as_written)]
"""``on`` or ``off``, which YAML reads as booleans."""


class Settings(BaseModel):
    """A configuration: unknown keys, wrong types, NaN and infinities are errors."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, allow_inf_nan=False)


Kind = TypeVar("Kind", bound=Settings)


def validate(kind: type[Kind], values: Mapping[str, Any], *, where: str) -> Kind:
    """Build a configuration, turning pydantic's errors into one.

    Args:
        kind: The settings class.
        values: Field values by name.
        where: Where the values came from, for the message, such as a preset's file.

    Returns:
        An instance of ``kind``.

    Raises:
        InputError: A key is unknown or a value is not allowed; every fault is listed.
    """
    try:
        return kind.model_validate(values)
    except ValidationError as error:
        faults = error.errors(include_url=False)
        lines = []
        for fault in faults:
            key = ".".join(str(part) for part in fault["loc"])
            if fault["type"] == "extra_forbidden":
                question = did_you_mean(key, kind.model_fields, form="{!r}")
                lines.append(f"unknown key {key!r}" + (f" ({question})" if question else ""))
            else:
                lines.append(f"{key}: {fault['msg']}, got {shown(fault['input'])}")
        raise InputError("the configuration is not valid", where=where, got="; ".join(lines)) from None
