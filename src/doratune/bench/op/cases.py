"""The cases of ``doratune bench op`` as data: ``cases.yaml``, checked strictly. No torch here."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache

from doratune.bench.cases import unknown_case
from doratune.named_yaml import read_shipped
from doratune.records.bench import Case, CaseSet, Quantity, Ratio, Target
from doratune.settings import Settings

SETS: tuple[CaseSet, ...] = ("cpu", "gpu")
QUANTITIES: dict[CaseSet, tuple[Quantity, ...]] = {"cpu": ("time",), "gpu": ("time", "gpu")}
"""The quantities that a case's targets limit."""


class CaseEntry(Case):
    """A case as it is in the file."""

    targets: dict[
        str, Ratio
    ]  #: highest time ratio to each baseline; on a GPU with and without the host's time


class CaseFile(Settings):
    """The whole of ``cases.yaml``."""

    timed_for: list[str]  #: the providers that the targets of the cases are for
    every_case: list[Target]  #: targets of every case
    cpu: list[CaseEntry]  #: cases for a CPU
    gpu: list[CaseEntry]  #: cases for a GPU

    def cases(self, case_set: CaseSet) -> list[Case]:
        """The cases of a set."""
        fields = set(Case.model_fields)
        return [Case(**entry.model_dump(include=fields)) for entry in self._entries(case_set)]

    def targets(self, case: Case) -> list[Target]:
        """The targets of a case: its own, then those of every case."""
        own = {
            entry.name: [
                Target(provider=provider, quantity=quantity, against=against, at_most=at_most)
                for quantity in QUANTITIES[case_set]
                for provider in self.timed_for
                for against, at_most in entry.targets.items()
            ]
            for case_set in SETS
            for entry in self._entries(case_set)
        }
        return own[case.name] + self.every_case

    def _entries(self, case_set: CaseSet) -> list[CaseEntry]:
        return self.cpu if case_set == "cpu" else self.gpu


@cache
def read_cases() -> CaseFile:
    """The cases that ship with doratune.

    Raises:
        pydantic.ValidationError: The file is not valid; the installation is broken.
    """
    return CaseFile.model_validate(read_shipped("doratune.bench.op", "cases.yaml"), strict=True)


def select_cases(file: CaseFile, case_set: CaseSet, names: Sequence[str]) -> list[Case]:
    """Some cases of a set, in the order of the file.

    Args:
        file: All cases.
        case_set: The set to choose from.
        names: Names of cases; all of the set if empty.

    Raises:
        InputError: No case of the set has one of the names.
    """
    cases = file.cases(case_set)
    known = [case.name for case in cases]
    for name in names:
        if name in known:
            continue
        others = {case.name: other for other in SETS for case in file.cases(other)}
        raise unknown_case(name, known, case_set, elsewhere=others.get(name))
    return [case for case in cases if not names or case.name in names]
