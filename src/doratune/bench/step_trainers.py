"""The trainers of a step: stock TRL with PEFT, and doratune's own, with the same hyperparameters."""

from __future__ import annotations

from pathlib import Path

import torch
from peft import LoraConfig, TaskType
from trl.trainer.sft_config import SFTConfig
from trl.trainer.sft_trainer import SFTTrainer

from doratune.bench.step_base import load_base
from doratune.bench.step_child import Trainee
from doratune.bench.step_providers import Method
from doratune.bench.step_rows import draw_rows
from doratune.training.callbacks import InterruptCallback, MetricsCallback
from doratune.training.config import LLAMA_TARGETS, TrainConfig
from doratune.training.train import build_trainer

LEARNING_RATE = 2e-4
SEED = 0
CHECKPOINTING = {"use_reentrant": False}
"""How activations are checkpointed, where they are: as ``doratune train`` does."""
STOCK_ATTENTION = "sdpa"
"""What transformers takes where nothing else is asked for."""


def stock_trainer(trainee: Trainee, method: Method, folder: Path) -> SFTTrainer:
    """TRL's SFTTrainer with its defaults, but for what the case says and what concerns the output.

    Two more differ. TRL checkpoints activations unless told not to, which ``doratune train`` does not, and
    which would set time against memory in the comparison. And every step is logged, for its loss.
    """
    case = trainee.case
    base = load_base(trainee.model, case.dtype)
    base.model.set_attn_implementation(STOCK_ATTENTION)
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
    return build_trainer(config, base, rows, MetricsCallback(folder), InterruptCallback())[0]
