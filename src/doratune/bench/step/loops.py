"""The training loops of ``doratune bench step``, unchanged except for a pause before every step.

They are the frozen model alone, stock TRL with PEFT, and doratune's trainer with the same hyperparameters.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, TaskType
from torch.nn.functional import cross_entropy
from transformers import (
    PreTrainedModel,
    TrainerCallback,
    TrainerControl,
    TrainerState,
    TrainingArguments,
)

from doratune.bench.step.inputs import draw_rows, load_base
from doratune.bench.step.providers import Frozen, Method, StepReport, Stock, Trainee
from doratune.bench.step.turns import Turn, TurnsOverError
from doratune.data.encode import IGNORED
from doratune.hub import without_telemetry
from doratune.memory import held_memory_bytes, peak_memory_bytes
from doratune.peft import enable
from doratune.records.bench import StepCase
from doratune.speedups._internals import attention_implementation
from doratune.training._internals import SFTConfig, SFTTrainer
from doratune.training.callbacks import MetricsCallback, StopCallback
from doratune.training.config import LLAMA_TARGETS, TrainConfig
from doratune.training.train import build_trainer

LEARNING_RATE = 2e-4
SEED = 0
CHECKPOINTING = {"use_reentrant": False}
"""How activations are checkpointed, if they are: as in ``doratune train``."""
STOCK_ATTENTION = "sdpa"
"""transformers' default."""
Pause = Callable[[float | None], None]
"""Called before a step with the previous step's loss."""


def run(trainee: Trainee, turn: Turn) -> StepReport:
    """Train in this process, one step per turn, until the turns are over."""
    torch.set_num_threads(trainee.threads)

    def pause(loss: float | None) -> None:
        if torch.cuda.is_available():
            torch.cuda.synchronize()  # a step ends when the GPU has finished it
        turn.wait(loss)

    with tempfile.TemporaryDirectory(prefix="doratune-") as folder:
        model, loop = _prepare(trainee, Path(folder), pause)
        before = held_memory_bytes()
        with suppress(TurnsOverError):
            loop()
    return StepReport(
        attention=attention_implementation(model),
        trainable=sum(one.numel() for one in model.parameters() if one.requires_grad),
        before_bytes=before,
        peak_bytes=peak_memory_bytes(),
    )


def _prepare(trainee: Trainee, folder: Path, pause: Pause) -> tuple[PreTrainedModel, Callable[[], object]]:
    """The model, and the loop that trains or runs it."""
    provider = trainee.provider
    if isinstance(provider, Frozen):
        step = FrozenStep(provider, trainee.model, trainee.case)

        def loop() -> None:
            loss = None
            while True:
                pause(loss)
                loss = step()

        return step.model, loop
    make = stock_trainer if isinstance(provider, Stock) else doratune_trainer
    trainer: Any = make(trainee, provider.method, folder)
    if isinstance(provider, Stock) and provider.enabled:
        enable(trainer.model)
    trainer.add_callback(PauseCallback(pause))
    return trainer.model, trainer.train


class PauseCallback(TrainerCallback):
    """Pauses before each step, after its rows have been loaded."""

    def __init__(self, pause: Pause) -> None:
        self._pause = pause
        self._loss: float | None = None

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        """Remember the step's loss."""
        self._loss = (logs or {})["loss"]

    def on_step_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Pause."""
        self._pause(self._loss)


class FrozenStep:
    """Forward, loss and backward to the embedded input, with logits only where there is a loss.

    Args:
        provider: Says which attention to use.
        model: The base model's name, as for ``inputs.load_base``.
        case: Describes the rows.
    """

    def __init__(self, provider: Frozen, model: str, case: StepCase) -> None:
        self.model = load_base(model, case.dtype).model
        self.model.set_attn_implementation(provider.attention)
        self.model.requires_grad_(False).train()
        if case.gradient_checkpointing:
            self.model.gradient_checkpointing_enable(CHECKPOINTING)
        rows = draw_rows(case, self.model.config.get_text_config().vocab_size).with_format("torch")
        self._ids, labels = (rows[:][name].to(self.model.device) for name in ("input_ids", "labels"))
        self._targets = labels[:, 1:]
        self._supervised = self._targets != IGNORED

    def __call__(self) -> float:
        """Run the step and return its loss."""
        model: Any = self.model
        embedded = model.get_input_embeddings()(self._ids).requires_grad_()
        hidden = model.base_model(inputs_embeds=embedded, use_cache=False).last_hidden_state
        logits = model.get_output_embeddings()(hidden[:, :-1][self._supervised])
        loss = cross_entropy(logits.float(), self._targets[self._supervised])
        loss.backward()
        return loss.item()


def stock_trainer(trainee: Trainee, method: Method, folder: Path) -> SFTTrainer:
    """TRL's SFTTrainer with its defaults, except for the case's settings and the output.

    Two more settings differ. TRL checkpoints activations by default; ``doratune train`` does not, and the
    comparison would trade time for memory. And every step is logged, for its loss.
    """
    case = trainee.case
    base = load_base(trainee.model, case.dtype)
    base.model.set_attn_implementation(STOCK_ATTENTION)
    with without_telemetry():
        return SFTTrainer(
            model=base.model,
            args=SFTConfig(
                output_dir=str(folder),
                per_device_train_batch_size=case.rows,
                max_steps=trainee.steps,
                learning_rate=LEARNING_RATE,
                gradient_checkpointing=case.gradient_checkpointing,
                gradient_checkpointing_kwargs=CHECKPOINTING if case.gradient_checkpointing else None,
                bf16=base.dtype == torch.bfloat16,
                use_cpu=not torch.cuda.is_available(),
                dataset_kwargs={"skip_prepare_dataset": True},
                logging_steps=1,
                save_strategy="no",
                report_to="none",
                seed=SEED,
            ),
            train_dataset=draw_rows(case, base.model.config.get_text_config().vocab_size),
            processing_class=base.tokenizer,
            peft_config=LoraConfig(
                task_type=TaskType.CAUSAL_LM,
                r=case.rank,
                lora_alpha=case.alpha,
                lora_dropout=0.0,
                target_modules=list(LLAMA_TARGETS),
                use_dora=method == "dora",
            ),
        )


def doratune_trainer(trainee: Trainee, method: Method, folder: Path) -> SFTTrainer:
    """The trainer of ``doratune train``."""
    case = trainee.case
    config = TrainConfig(
        model=trainee.model,
        method=method,
        rank=case.rank,
        alpha=case.alpha,
        dropout=0.0,
        targets=list(LLAMA_TARGETS),
        learning_rate=LEARNING_RATE,
        warmup_steps=0,
        steps=trainee.steps,
        batch_size=case.rows,
        loss_on=case.loss_on,
        save_steps=trainee.steps + 1,
        seed=SEED,
        dtype=case.dtype,
        gradient_checkpointing=case.gradient_checkpointing,
        output=folder,
    )
    base = load_base(trainee.model, case.dtype)
    rows = draw_rows(case, base.model.config.get_text_config().vocab_size)
    return build_trainer(config, base, rows, MetricsCallback(folder), StopCallback())[0]
