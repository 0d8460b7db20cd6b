"""The grid of a plan: groups of arms that differ only in the method."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from doratune.data.tasks import MIX
from doratune.errors import InputError
from doratune.evaluation.config import EvalConfig
from doratune.methods.method import Method
from doratune.records.layout import RUNS_NAME, VALIDATION_NAME
from doratune.records.run import Format
from doratune.records.study import StudyMethod
from doratune.settings import validate
from doratune.study.address import WITHOUT_EFFECT, address, run_address
from doratune.study.job import Job, Wanted
from doratune.study.material import DATA_NAME, Material, Test
from doratune.study.plan import Plan
from doratune.study.rates import NONE_ADDED, Added, extended_rates
from doratune.training.config import TrainConfig, check_method
from doratune.training.early import micro_batch


@dataclass(frozen=True)
class Group:
    """The arms of one model, training set, format, rank, batch size, number of epochs and of rows.

    Attributes:
        plan: The plan it belongs to.
        folder: The study's folder.
        model: Name of the base model.
        identity: Identifies the model's content; see ``address``.
        material: The rows.
        format: How a row becomes a prompt and its candidate answers.
        rank: Rank of the adapters.
        batch_size: Rows per optimizer step; None: the plan does not cross them.
        epochs: Passes over the training rows; None: the plan does not cross them.
        rows: At most this many training rows, of a mixture per task; None: all.
    """

    plan: Plan
    folder: Path
    model: str
    identity: str
    material: Material
    format: Format
    rank: int
    batch_size: int | None = None
    epochs: float | None = None
    rows: int | None = None

    @property
    def seeds(self) -> list[int]:
        """The seeds of all arms."""
        return self.plan.seeds_of(self.material.entry)

    @property
    def choosing(self) -> list[int]:
        """The seeds that try all learning rates."""
        return self.seeds if self.plan.choose.per == "seed" else self.seeds[:1]

    @property
    def cell_rank(self) -> int | None:
        """The rank of all adapters of the group; None if they differ or there are none."""
        ranks = {
            self.plan.own_settings.get(method, {}).get("rank", self.rank)
            for method in self.plan.methods
            if "rank" in self.plan.method(method).given
        }
        return ranks.pop() if len(ranks) == 1 else None

    @property
    def cell_batch_size(self) -> int | None:
        """The batch size of all arms; None if they differ."""
        found = {config.batch_size for config in self.configs()}
        return found.pop() if len(found) == 1 else None

    @property
    def cell_epochs(self) -> float | None:
        """The epochs of all arms; None if they differ or a number of steps is given."""
        found = {config.epochs if config.steps is None else None for config in self.configs()}
        return found.pop() if len(found) == 1 else None

    @property
    def axes(self) -> tuple[int | None, int | None, float | None, int | None]:
        """Rank, batch size, epochs and most training rows, as in the cells."""
        return self.cell_rank, self.cell_batch_size, self.cell_epochs, self.rows

    @property
    def rows_per_epoch(self) -> int:
        """The training rows of every run."""
        sizes = [part.record.rows for part in self.material.train]
        return sum(min(self.rows or rows, rows) for rows in sizes)

    def check(self) -> None:
        """Refuse settings with which a run would be refused.

        Raises:
            InputError: They do not fit a method, the number of processes or of rows.
        """
        for config in self.configs():
            try:
                check_method(config, self.plan.method(config.method))
                micro_batch(config, self.plan.resources.of_a_run)
                config.warmup(config.total_steps(self.rows_per_epoch))
            except InputError as error:
                raise InputError(
                    error.what,
                    where=f"settings of {config.method}, {error.where}",
                    got=error.got,
                    expected=error.expected,
                    fix=error.fix,
                ) from None

    def configs(self) -> list[TrainConfig]:
        """A configuration of each method."""
        plan = self.plan
        return [self._config(method, plan.rates(method)[0], self.seeds[0]) for method in plan.methods]

    def rates(self, method: StudyMethod, added: Added = NONE_ADDED) -> list[float]:
        """The learning rates to try for a method, ascending, with those added at their ends."""
        return extended_rates(self.plan.rates(method), added)

    def trials(self, added: Added = NONE_ADDED) -> list[Job]:
        """The trials of all methods with all learning rates; none if there is no rate to choose.

        Args:
            added: How many rates are added to the plan's, for every method.
        """
        if not self.material.validation:
            return []
        return [
            self.trial(method, rate, seed)
            for seed in self.choosing
            for method in self.plan.methods
            for rate in self.rates(method, added)
        ]

    def trial(self, method: StudyMethod, rate: float, seed: int) -> Job:
        """The job that trains with one learning rate and seed, and answers the validation rows."""
        return self._job(method, rate, seed, "trial")

    def test(self, method: StudyMethod, rate: float, seed: int) -> Job:
        """The job that trains, unless that is done, and answers the test rows.

        With a seed that has trials it answers the validation rows too, in case the run must be trained again.
        """
        return self._job(method, rate, seed, "test")

    def base(self) -> Job:
        """The job that answers the test rows with the base model."""
        shared = {key: self.plan.settings[key] for key in _LOADING if key in self.plan.settings}
        tests = self.material.tests
        rows = {test.task.name: test.record.asked for test in tests}
        also = {test.task.name: test.record.asked for test in self.material.also}
        key = address(
            {
                "model": self.identity,
                "settings": {key: value for key, value in shared.items() if key not in WITHOUT_EFFECT},
                "format": self.format,
                "protocol": self.plan.protocol,
                "limit": self.material.entry.eval_rows,
                "data": rows if len(tests) > 1 else tests[0].record.asked,
                **({"also": also} if also else {}),
            }
        )
        folder = self.folder / RUNS_NAME / f"base-{_short(list(rows))}-{key}"
        wanted = [self._answers(test, self.model, folder) for test in (*tests, *self.material.also)]
        wanted = tuple(replace(one, config=one.config.model_copy(update=shared)) for one in wanted)
        text = self._text(self.model, folder).model_copy(update=shared)
        return Job(stage="base", folder=folder, config=None, wanted=wanted, method="base", text=text)

    def _job(self, method: StudyMethod, rate: float, seed: int, stage: Literal["trial", "test"]) -> Job:
        config = self._config(method, rate, seed)
        own = self.plan.own_methods.get(method)
        key = run_address(config, model=self.identity, data=self.material.train_record.asked, own=own)
        name = _short(self.material.entry.names)
        folder = self.folder / RUNS_NAME / f"{method}-{name}-{key}"
        wanted = self._validations(folder) if seed in self.choosing else []
        if stage == "test":
            tests = (*self.material.tests, *self.material.also)
            wanted += [self._answers(test, str(folder), folder) for test in tests]
        return Job(
            stage=stage,
            folder=folder,
            config=config.model_copy(
                update={
                    "output": folder,
                    "task": [self.material.given(task) for task in config.task],
                    "method": str(method_copy(self.folder, own)) if own else method,
                }
            ),
            wanted=tuple(wanted),
            method=method,
            text=self._text(str(folder), folder) if stage == "test" else None,
        )

    def _config(self, method: StudyMethod, rate: float, seed: int) -> TrainConfig:
        plan = self.plan
        rank = plan.own_settings.get(method, {}).get("rank", self.rank)
        adapter = {"rank": rank, "alpha": plan.alpha(rank)}
        crossed = {"batch_size": self.batch_size, "epochs": self.epochs}
        crossed = {key: value for key, value in crossed.items() if value is not None}
        settings = {**adapter, **plan.settings, **plan.own_settings.get(method, {}), **crossed}
        unused = plan.method(method).unused
        settings = {key: value for key, value in settings.items() if key not in unused}
        several = len(self.material.train) > 1
        return validate(
            TrainConfig,
            {
                **settings,
                "method": method,
                "model": self.model,
                "task": [part.task or MIX for part in self.material.train if part.task or several],
                "data": self.material.train_path,
                "format": self.format,
                "rows": self.rows,
                "learning_rate": float(rate),
                "seed": seed,
                "output": self.folder,
            },
            where=f"plan, {method}",
        )

    def _validations(self, folder: Path) -> list[Wanted]:
        return [
            Wanted(
                part.task or "",
                self._evaluation(
                    str(folder), part.task or "", part.path, "validation", folder / VALIDATION_NAME
                ),
                part.record.asked,
                part.record.rows,
            )
            for part in self.material.validation
        ]

    def _evaluation(
        self, target: str, task: str, data: Path | None, split: Literal["validation", "test"], output: Path
    ) -> EvalConfig:
        return EvalConfig(
            target=target,
            task=[self.material.given(task)],
            data=data,
            split=split,
            format=self.format,
            protocol=self.plan.protocol,
            eval_rows=self.material.entry.eval_rows if split == "test" else None,
            eval_batch_size=self.plan.eval_batch_size,
            output=output,
            trust_remote_code=self.plan.settings.get("trust_remote_code", False),
        )

    def _text(self, target: str, folder: Path) -> EvalConfig:
        """The evaluation on the built-in text."""
        return EvalConfig(
            target=target,
            text=True,
            output=folder,
            trust_remote_code=self.plan.settings.get("trust_remote_code", False),
        )

    def _answers(self, test: Test, target: str, folder: Path) -> Wanted:
        """The evaluation on the test rows of a task."""
        config = self._evaluation(target, test.task.name, test.data, "test", folder)
        limit = self.material.entry.eval_rows or test.record.rows
        return Wanted(test.task.name, config, test.record.asked, min(limit, test.record.rows))


def method_copy(folder: Path, method: Method) -> Path:
    """Where a study in ``folder`` keeps its copy of an own method's file."""
    return folder / DATA_NAME / "methods" / f"{method.name}.yaml"


def _short(tasks: list[str]) -> str:
    """The part of a run directory's name that names its tasks."""
    return tasks[0] if len(tasks) == 1 else f"{len(tasks)}-tasks"


_LOADING = ("dtype", "load_in_4bit", "device_map", "speedups", "trust_remote_code")


def groups_of(
    plan: Plan, identities: Mapping[str, str], materials: list[Material], folder: Path
) -> list[Group]:
    """Every group of a plan, ordered by model, then training set, format and the other axes."""
    return [
        Group(plan, folder, model, identities[model], material, form, rank, batch_size, epochs, rows)
        for model in plan.models
        for material in materials
        for form in material.entry.formats
        for rank in plan.ranks
        for batch_size in plan.batch_sizes or [None]
        for epochs in plan.epochs or [None]
        for rows in material.entry.row_limits
    ]
