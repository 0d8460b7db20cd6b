"""The cases of ``doratune bench step`` as data: ``cases.yaml``, checked strictly. No torch here."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache

from doratune.bench.cases import unknown_case
from doratune.named_yaml import read_shipped
from doratune.records.bench import Quantity, Ratio, StepCase, StepSet, Target
from doratune.settings import Settings


class StepEntry(StepCase):
    """A case as it is in the file."""

    targets: dict[Quantity, dict[str, Ratio]]  #: the highest ratio, by quantity and baseline

    def case(self) -> StepCase:
        """The case without its targets."""
        return StepCase(**self.model_dump(include=set(StepCase.model_fields)))


class StepFile(Settings):
    """The whole of ``cases.yaml``."""

    targets_for: str  #: the provider that the targets are for
    headline: list[StepEntry]  #: measured by default
    growth: list[StepEntry]  #: how the figures change with the size of the step
    gpu: list[StepEntry]  #: for a large model on a GPU

    def select(self, step_set: StepSet | None, names: Sequence[str]) -> list[StepEntry]:
        """Some cases, in the order of the file.

        Args:
            step_set: The set to choose from; None: "all" if there are names, otherwise "headline". "all" does
                not include "gpu", which is for a larger model.
            names: Names of cases; all of the set if empty.

        Raises:
            InputError: No case of the set has one of the names.
        """
        everything = self.headline + self.growth
        step_set = step_set or ("all" if names else "headline")
        sets = {"headline": self.headline, "growth": self.growth, "gpu": self.gpu, "all": everything}
        entries = sets[step_set]
        known = [entry.name for entry in entries]
        for name in names:
            if name not in known:
                holders = (other for other in ("all", "gpu") if name in [one.name for one in sets[other]])
                elsewhere = next(holders, None)
                raise unknown_case(name, known, step_set, elsewhere=elsewhere)
        return [entry for entry in entries if not names or entry.name in names]

    def targets(self, entry: StepEntry) -> list[Target]:
        """The targets of a case."""
        return [
            Target(provider=self.targets_for, quantity=quantity, against=against, at_most=at_most)
            for quantity, limits in entry.targets.items()
            for against, at_most in limits.items()
        ]


@cache
def read_steps() -> StepFile:
    """The cases that ship with doratune.

    Raises:
        pydantic.ValidationError: The file is not valid; the installation is broken.
    """
    return StepFile.model_validate(read_shipped("doratune.bench.step", "cases.yaml"), strict=True)
