"""Shared code for the cases of layers, training steps and generation. No torch here."""

from __future__ import annotations

from typing import TypeVar

from doratune.errors import InputError, did_you_mean
from doratune.records.bench import Case, DType, InferCase, StepCase

SUFFIXES: dict[DType, str] = {"bfloat16": "", "float32": "-fp32"}
"""The suffix of a case's name, by its dtype."""
AnyCase = TypeVar("AnyCase", bound=Case | InferCase | StepCase)


def in_dtype(case: AnyCase, dtype: DType | None) -> AnyCase:
    """A case in another dtype, with the suffix of that dtype in its name.

    Args:
        case: The case, with its targets if it has any.
        dtype: The dtype; None leaves the case as it is.
    """
    if dtype is None or dtype == case.dtype:
        return case
    name = case.name.removesuffix(SUFFIXES[case.dtype]) + SUFFIXES[dtype]
    return case.model_copy(update={"name": name, "dtype": dtype})


def unknown_case(name: str, known: list[str], in_set: str, *, elsewhere: str | None) -> InputError:
    """The error for a name that no case in a set has.

    Args:
        name: The name.
        known: The names in the set.
        in_set: The set.
        elsewhere: Another set that has the case, or None.
    """
    return InputError(
        "unknown case",
        where="--case",
        got=name,
        expected=f"in the set {in_set}, one of {', '.join(known)}",
        fix=f"add --set {elsewhere}" if elsewhere else did_you_mean(name, known),
    )
