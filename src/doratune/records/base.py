"""The base of all records: unknown keys are refused, fields do not change, numbers are finite."""

from __future__ import annotations

import math
from typing import Annotated, Any

from pydantic import BaseModel, BeforeValidator, ConfigDict

Scalar = bool | int | float | str | None
Setting = Scalar | list[Scalar]
"""The value of a setting in a configuration or plan."""


class Record(BaseModel):
    """A part of a file that doratune writes."""

    model_config = ConfigDict(extra="forbid", frozen=True, populate_by_name=True, allow_inf_nan=False)

    def to_dict(self) -> dict[str, Any]:
        """The record as plain JSON types, with the keys of the file."""
        return self.model_dump(mode="json", by_alias=True)


def finite_or_none(value: Any) -> Any:
    """``value``, or None for NaN and infinities."""
    return None if isinstance(value, float) and not math.isfinite(value) else value


FiniteOrNone = Annotated[float | None, BeforeValidator(finite_or_none)]
"""A number that may have diverged: NaN and infinities, which JSON cannot hold, become None."""
