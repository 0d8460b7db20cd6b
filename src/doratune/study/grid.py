"""The grid of a plan: groups of arms in which everything but the method is held equal."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from doratune.evaluation.config import EvalConfig
from doratune.records.run import Format
from doratune.records.study import StudyMethod
from doratune.settings import validate
from doratune.study.address import address, model_identity, run_address
from doratune.study.job import VALIDATION_NAME, Job, Wanted
from doratune.study.material import Material, Test
from doratune.study.plan import Plan
from doratune.training.config import TrainConfig

RUNS_NAME = "runs"
TRAINING: Mapping[StudyMethod, Mapping[str, Any]] = {
    "lora": {"method": "lora"},
    "dora": {"method": "dora"},
    "dora-attached-norm": {"method": "dora", "norm_gradient": True},
    "full": {"method": "full"},
}
"""What a method of a study is in a run's configuration."""
OF_ADAPTERS = frozenset({"rslora", "dropout", "targets", "engine"})
"""Settings that full fine-tuning has no use for, besides rank and alpha."""


@dataclass(frozen=True)
class Group:
    """The arms of one model, training set, format and rank.

    Attributes:
        plan: The plan it is of.
        folder: The study's folder.
        model: Name of the base model.
        material: The rows.
        format: How a row becomes a prompt and its candidate answers.
        rank: Of the adapters.
    """

    plan: Plan
    folder: Path
    model: str
    material: Material
    format: Format
    rank: int

    def trial(self, method: StudyMethod, rate: float) -> Job:
        """Train with one learning rate and the first seed, and answer the validation rows."""
        return self._job(method, rate, self.plan.seeds[0], "trial")

    def test(self, method: StudyMethod, rate: float, seed: int) -> Job:
        """Train, if that is not done, and answer the test rows.

        The validation rows of the first seed are in it too, for a run that must be trained again.
        """
        return self._job(method, rate, seed, "test")

    def base(self) -> list[Job]:
        """Answer the test rows with the model as it is, a job for each task."""
        return [self._base(test) for test in self.material.tests]

    def _job(self, method: StudyMethod, rate: float, seed: int, stage: Literal["trial", "test"]) -> Job:
        config = self._config(method, rate, seed)
        key = run_address(config, model=model_identity(self.model), data=self.material.train.record.sha256)
        folder = self.folder / RUNS_NAME / f"{method}-{self.material.entry.train.lower()}-{key}"
        wanted = self._validations(folder) if seed == self.plan.seeds[0] else []
        if stage == "test":
            wanted += [
                self._wanted(test, self._evaluation(test, str(folder), folder))
                for test in self.material.tests
            ]
        return Job(
            stage=stage,
            folder=folder,
            config=config.model_copy(update={"output": folder}),
            wanted=tuple(wanted),
            method=method,
        )

    def _config(self, method: StudyMethod, rate: float, seed: int) -> TrainConfig:
        entry, plan = self.material.entry, self.plan
        settings = dict(plan.settings)
        if method == "full":
            settings = {key: value for key, value in settings.items() if key not in OF_ADAPTERS}
        else:
            settings |= {"rank": self.rank, "alpha": plan.alpha_over_rank * self.rank}
        owner = self.material.train.task
        return validate(
            TrainConfig,
            {
                **settings,
                **TRAINING[method],
                "model": self.model,
                "task": [owner] if owner else [],
                "data": self.material.train.path,
                "format": self.format,
                "rows": entry.rows,
                "learning_rate": float(rate),
                "seed": seed,
                "output": self.folder,
            },
            where=f"plan, {method}",
        )

    def _validations(self, folder: Path) -> list[Wanted]:
        return [
            Wanted(
                EvalConfig(
                    target=str(folder),
                    task=[part.task or ""],
                    data=part.path,
                    split="validation",
                    format=self.format,
                    protocol=self.plan.protocol,
                    batch_size=self.plan.eval_batch_size,
                    output=folder / VALIDATION_NAME,
                ),
                part.record.sha256,
                part.record.rows,
            )
            for part in self.material.validation
        ]

    def _evaluation(self, test: Test, target: str, output: Path) -> EvalConfig:
        return EvalConfig(
            target=target,
            task=[test.task.name],
            data=test.data,
            format=self.format,
            protocol=self.plan.protocol,
            limit=self.material.entry.limit,
            batch_size=self.plan.eval_batch_size,
            output=output,
        )

    def _base(self, test: Test) -> Job:
        shared = {key: self.plan.settings[key] for key in _LOADING if key in self.plan.settings}
        key = address(
            {
                "model": model_identity(self.model),
                "settings": shared,
                "format": self.format,
                "protocol": self.plan.protocol,
                "limit": self.material.entry.limit,
                "data": test.record.sha256,
            }
        )
        folder = self.folder / RUNS_NAME / f"base-{test.task.name}-{key}"
        evaluation = self._evaluation(test, self.model, folder).model_copy(update=shared)
        wanted = self._wanted(test, evaluation)
        return Job(stage="base", folder=folder, config=None, wanted=(wanted,), method="base")

    def _wanted(self, test: Test, config: EvalConfig) -> Wanted:
        limit = self.material.entry.limit or test.record.rows
        return Wanted(config, test.record.sha256, min(limit, test.record.rows))


_LOADING = ("dtype", "load_in_4bit", "device_map", "speedups", "trust_remote_code")


def groups_of(plan: Plan, materials: list[Material], folder: Path) -> list[Group]:
    """Every group of a plan, in its order: model by model, training set by training set, format, rank."""
    return [
        Group(plan, folder, model, material, form, rank)
        for model in plan.models
        for material in materials
        for form in material.entry.formats
        for rank in plan.ranks
    ]
