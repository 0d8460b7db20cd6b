"""The settings of a comparison and of how a study is carried out."""

from __future__ import annotations

from typing import Annotated, Literal

from tyro.conf import Positional

from doratune.evaluation.config import EvalConfig
from doratune.records.run import Method, Protocol
from doratune.settings import LaxPath, Positive, Settings
from doratune.training.config import TrainConfig, TrainingSettings


class CompareConfig(TrainingSettings):
    """Base, LoRA and DoRA on the same rows, order, seed and budget."""

    output: LaxPath
    """Folder for the runs, the table and the report."""
    test_data: LaxPath | None = None
    """JSON or JSONL file with the test rows, for a comparison on --data."""
    protocol: Protocol = "likelihood"
    """likelihood: rank the candidate answers; generate: beam search and answer pattern."""
    limit: Positive | None = None
    """Only the first so many test rows of each task."""
    eval_batch_size: Positive = 32
    """Rows per forward pass in evaluation."""

    def train_config(self, method: Method, overrides: dict[str, object]) -> TrainConfig:
        """The configuration of one trained arm, with a preset's settings for its method."""
        shared = self.model_dump(include=set(TrainingSettings.model_fields))
        return TrainConfig.model_validate(
            {**shared, **overrides, "method": method, "output": self.output / method}
        )

    def eval_config(self, method: Method) -> EvalConfig:
        """How one arm is evaluated."""
        return EvalConfig(
            target=self.model if method == "base" else str(self.output / method),
            task=self.task,
            data=self.test_data,
            format=self.format,
            protocol=self.protocol,
            limit=self.limit,
            batch_size=self.eval_batch_size,
            output=self.output / method,
            dtype=self.dtype,
            load_in_4bit=self.load_in_4bit,
            speedups=self.speedups,
            device_map=self.device_map,
            trust_remote_code=self.trust_remote_code,
        )


class StudyConfig(Settings):
    """Where and how a plan is carried out; nothing of it changes a result."""

    plan: Annotated[str, Positional]
    """Name of a shipped plan, or a YAML file."""
    output: LaxPath
    """Folder of the study; one that holds runs of the plan is gone on with."""
    data: LaxPath | None = None
    """Folder with <task>/train.json and <task>/test.json, instead of the hub; goes before the plan's."""
    engine: Literal["local", "ray"] = "local"
    """local: this machine; ray: a Ray cluster whose machines share the output folder."""
    jobs: Positive = 1
    """Runs at a time on this machine."""
    threads: Positive | None = None
    """Threads of each run; None: the cores divided among the jobs."""
