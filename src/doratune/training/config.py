"""The settings of a training run, strict and documented once, for flags, presets and config.yaml.

No torch here, so that ``--help`` stays fast. Defaults are those of the paper's commonsense runs
(arXiv 2402.09353, appendix; the authors' LLaMA-7B scripts), except for the warm-up, whose 100 steps would
exceed a short run.
"""

from __future__ import annotations

import math
from typing import Annotated, Literal

from pydantic import Field

from doratune.errors import InputError
from doratune.methods.method import Method
from doratune.records.run import Format
from doratune.settings import Dtype, LaxPath, OnOff, Positive, Seed, Settings

WARMUP_SHARE = 0.03
"""Share of all optimizer steps, used if no number of warm-up steps is given."""
FEW_STEPS = 10
LLAMA_TARGETS = ("q_proj", "k_proj", "v_proj", "up_proj", "down_proj")


class TrainingSettings(Settings):
    """The settings that all runs of a comparison share.

    A method has no use for some that describe an adapter: rank, alpha, dropout, targets and engine.
    """

    model: str = "smollm2-135m"
    """Built-in name, local folder, .gguf file or hub id."""
    task: list[str] = Field(default=[])
    """Tasks to train on, by name or YAML file; several are mixed. multiple-choice: your own rows of
    --data. commonsense-mix: the paper's eight, without repeated rows."""
    data: LaxPath | None = None
    """JSON or JSONL file with the training rows, instead of the hub (doratune tasks multiple-choice shows how
    they look); for commonsense-mix a folder, for several tasks a folder with <task>/train.json."""
    format: Format = "instruct"
    """instruct: answer labels such as ending3; continuation: the answer's own text."""
    rows: Positive | None = None
    """At most this many training rows per task (of the mix: in all), drawn by the seed."""

    rank: Positive = 32
    """Rank r of the adapter."""
    alpha: Annotated[float, Field(gt=0)] = 64.0
    """The adapter is scaled by alpha / rank."""
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.05
    """Dropout on the adapter's input."""
    targets: list[str] = Field(default=[*LLAMA_TARGETS])
    """Names of the linear layers to adapt."""
    engine: Literal["doratune", "peft"] = "doratune"
    """What computes the layers with LoRA or DoRA; peft: stock PEFT, as for every other method."""
    speedups: OnOff = "on"
    """Replace the model's code by faster code with the same results; off: transformers' and TRL's only."""

    learning_rate: Annotated[float, Field(gt=0)] = 2e-4
    """Peak learning rate of AdamW."""
    schedule: Literal["linear", "cosine", "constant"] = "linear"
    """Learning rate after the warm-up."""
    warmup_steps: Annotated[int, Field(ge=0)] | None = None
    """Optimizer steps of linear warm-up; None: 3 % of all steps."""
    weight_decay: Annotated[float, Field(ge=0)] = 0.0
    """AdamW's decoupled weight decay."""
    epochs: Annotated[float, Field(gt=0)] = 3.0
    """Passes over the training rows."""
    steps: Positive | None = None
    """Optimizer steps; overrides epochs."""
    batch_size: Positive = 16
    """Rows per optimizer step, over all devices."""
    micro_batch_size: Positive | None = None
    """Rows per forward pass and device; gradients of a batch are accumulated."""
    cutoff: Positive = 256
    """Longest row in tokens, prompt and answer."""
    drop_long_rows: bool = False
    """Leave out rows longer than the cutoff instead of refusing them."""
    loss_on: Literal["answer", "prompt-and-answer"] = "answer"
    """Which tokens are trained on; the original study used prompt-and-answer."""
    validation_share: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Share of the training rows held out to report a validation loss."""
    save_steps: Positive = 200
    """Optimizer steps between checkpoints, and between validation losses."""
    keep_checkpoints: Positive = 2
    """How many of the newest checkpoints are kept."""
    on_nonfinite: Literal["stop", "skip"] = "stop"
    """stop: end at a loss or gradient that is not finite; skip: skip that optimizer step, and count it."""
    seed: Seed = 0
    """Seed of the rows, their order, the adapter and dropout."""

    dtype: Dtype = "auto"
    """auto: bfloat16 where the hardware is fast at it, else float32; full keeps its weights in float32."""
    load_in_4bit: bool = False
    """Quantise the base model to 4 bits with bitsandbytes (QLoRA, QDoRA)."""
    gradient_checkpointing: bool = False
    """Recompute activations in the backward pass to save memory."""
    device_map: str | None = None
    """transformers' device_map, such as auto; None: this process's device."""
    trust_remote_code: bool = False
    """Let a hub model run its own code."""
    report_to: list[str] = Field(default=[])
    """Trackers of transformers' Trainer: tensorboard, trackio, wandb."""

    def total_steps(self, rows: int) -> int:
        """The number of optimizer steps for ``rows`` training rows."""
        return self.steps or max(math.ceil(self.epochs * -(-rows // self.batch_size)), 1)

    def warmup(self, steps: int) -> int:
        """Optimizer steps of warm-up in a run of ``steps``.

        Raises:
            InputError: The given warm-up is as long as the run, or longer.
        """
        if self.warmup_steps is None:
            # The first warm-up step has a learning rate of 0, so a run of a few steps has no warm-up.
            return max(round(WARMUP_SHARE * steps), int(steps > FEW_STEPS))
        if self.warmup_steps >= steps:
            raise InputError(
                "the run would end before its warm-up does",
                where="--warmup-steps",
                got=f"{self.warmup_steps} warm-up steps of {steps} in all",
                fix="lower --warmup-steps, or train for more --epochs or --steps",
            )
        return self.warmup_steps


class TrainConfig(TrainingSettings):
    """The whole configuration of one run, as written to config.yaml."""

    method: str = "dora"
    """Name of a method (doratune methods lists them), or the YAML file of one."""
    output: LaxPath
    """Run directory to write."""


def check_method(config: TrainConfig, method: Method) -> None:
    """Refuse settings that the method does not support.

    Args:
        config: The settings.
        method: Their method.

    Raises:
        InputError: Full fine-tuning of a quantised or float16 model; an adapter
            without layers; or stock PEFT for a method that only the engine computes.
    """
    if not method.trains_all:
        if "targets" in method.given and not config.targets:
            raise InputError(
                "there is no layer to adapt",
                where="--targets",
                got="no name",
                expected="names of linear layers",
            )
        if method.norm_gradient and config.engine != "doratune":
            raise InputError(
                "only doratune's engine lets the gradient flow through DoRA's norm",
                where="--engine",
                got=f"{config.engine} with --method {config.method}",
                expected="doratune",
            )
        return
    if config.load_in_4bit:
        raise InputError(
            "weights in 4 bits cannot be trained, only an adapter on them",
            where="--load-in-4bit",
            got=f"--method {config.method}",
            fix="leave --load-in-4bit out, or train with --method dora",
        )
    if config.dtype == "float16":
        raise InputError(
            "weights in float16 cannot be trained, only an adapter on them",
            where="--dtype",
            got=f"float16 with --method {config.method}",
            expected="auto, float32 or bfloat16",
        )
