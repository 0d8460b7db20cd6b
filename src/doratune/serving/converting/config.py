"""The settings of a conversion. No torch here, so that ``--help`` stays fast."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator
from tyro.conf import Positional

from doratune.errors import InputError
from doratune.records.run import Format
from doratune.settings import Dtype, LaxPath, Positive, Settings

RANKS = (8, 16, 32, 64, 128, 256)
"""What ``--rank auto`` chooses from."""


class ConvertConfig(Settings):
    """What is converted, into what, and how that is checked."""

    target: Annotated[str, Positional]
    """Run directory or adapter folder."""
    output: LaxPath
    """Folder to write, which must not exist: a PEFT adapter; with --exact, base and adapter in it."""
    to: Literal["lora"] = "lora"
    """What it is converted into."""
    rank: Positive | Literal["auto"] | None = None
    """Rank of the LoRA; auto: the smallest of 8, 16, 32, 64, 128 and 256 that keeps to --max-kl."""
    max_kl: Annotated[float, Field(gt=0)] | None = None
    """With --rank auto: the largest mean KL divergence from the adapter on the check rows, in nats."""
    exact: bool = False
    """Fold DoRA's magnitudes into a base model that is written too; the LoRA on it is exact."""
    dtype: Dtype = "auto"
    """With --exact: type of the written base; auto: the base's own."""
    check_data: LaxPath | None = None
    """Text file with the rows on which the two are compared; None: built-in rows."""
    task: list[str] = Field(default_factory=list)
    """Tasks on which the accuracies of the adapter and of the conversion are compared."""
    data: LaxPath | None = None
    """JSON or JSONL file with the rows of the (one) task, instead of the hub."""
    eval_rows: Positive | None = None
    """Only this many rows of each task, from the first on."""
    format: Format | None = None
    """instruct or continuation; None: the format of the run, else instruct."""
    base: str | None = None
    """Base model, if it is not where the run or adapter says."""
    allow_other_base: bool = False
    """Convert also onto a base model with other weights than the adapter was trained on."""

    @model_validator(mode="after")
    def _go_together(self) -> ConvertConfig:
        if self.exact == (self.rank is not None):
            raise InputError(
                "an exact conversion keeps the adapter's rank"
                if self.exact
                else "the LoRA's rank is missing",
                where="doratune convert",
                got=f"--exact and --rank {self.rank}" if self.exact else None,
                expected="either --rank or --exact",
                fix="give one of --rank 32, --rank auto --max-kl 0.01 and --exact",
            )
        if (self.rank == "auto") != (self.max_kl is not None):
            raise InputError(
                "--rank auto needs the KL divergence that it may cost"
                if self.rank == "auto"
                else "--max-kl chooses a rank, and this conversion has one",
                where="doratune convert",
                got=f"--rank {self.rank}" if self.rank else "--exact",
                expected="--rank auto with --max-kl",
                fix="add --max-kl 0.01" if self.rank == "auto" else "give --rank auto, or leave --max-kl out",
            )
        if self.dtype != "auto" and not self.exact:
            raise InputError(
                "only an exact conversion writes a base model",
                where="--dtype",
                got=self.dtype,
                fix="leave it out, or add --exact",
            )
        needless = {"--data": self.data, "--eval-rows": self.eval_rows, "--format": self.format}
        if given := [flag for flag, value in needless.items() if value is not None and not self.task]:
            raise InputError(
                "there is no task to evaluate", where=" ".join(given), fix="add --task, or leave them out"
            )
        return self
