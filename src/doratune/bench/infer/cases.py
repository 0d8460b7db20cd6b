"""The cases of ``doratune bench infer`` as data: ``cases.yaml``, checked strictly. No torch here."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache

from doratune.bench.cases import unknown_case
from doratune.named_yaml import read_shipped
from doratune.records.bench import InferCase, Ratio, Target
from doratune.settings import Settings


class InferEntry(InferCase):
    """A case as it is in the file."""

    targets: dict[str, Ratio]  #: the highest ratio of times, by baseline

    def case(self) -> InferCase:
        """The case without its targets."""
        return InferCase(**self.model_dump(include=set(InferCase.model_fields)))


class InferFile(Settings):
    """The whole of ``cases.yaml``."""

    targets_for: str  #: the provider that the targets are for
    cases: list[InferEntry]  #: measured by default

    def select(self, names: Sequence[str]) -> list[InferEntry]:
        """Some cases, in the order of the file; all if there are no names.

        Raises:
            InputError: No case has one of the names.
        """
        known = [entry.name for entry in self.cases]
        for name in names:
            if name not in known:
                raise unknown_case(name, known, "infer", elsewhere=None)
        return [entry for entry in self.cases if not names or entry.name in names]

    def targets(self, entry: InferEntry) -> list[Target]:
        """The targets of a case."""
        return [
            Target(provider=self.targets_for, quantity="time", against=against, at_most=at_most)
            for against, at_most in entry.targets.items()
        ]


@cache
def read_infer() -> InferFile:
    """The cases that ship with doratune.

    Raises:
        pydantic.ValidationError: The file is not valid; the installation is broken.
    """
    return InferFile.model_validate(read_shipped("doratune.bench.infer", "cases.yaml"), strict=True)
