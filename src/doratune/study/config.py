"""The settings of a comparison: those of training, and how the arms are evaluated."""

from __future__ import annotations

from doratune.evaluation.config import EvalConfig
from doratune.records.run import Method, Protocol
from doratune.settings import LaxPath, Positive
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
            device_map=self.device_map,
            trust_remote_code=self.trust_remote_code,
        )
