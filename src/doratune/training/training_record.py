"""The part of a run's record that says how it was trained."""

from __future__ import annotations

from typing import Any, Literal

from accelerate.utils import gather_object
from peft import PeftModel

from doratune.launch import launched
from doratune.memory import peak_memory_bytes
from doratune.peft import first_calls, left_to_peft
from doratune.records.run import (
    ChangeRecord,
    LayersRecord,
    ParameterCount,
    ProcessesRecord,
    TrainingRecord,
)
from doratune.speedups import SpeedupReport
from doratune.training.callbacks import MetricsCallback
from doratune.training.config import TrainConfig
from doratune.training.trainer import RowTrainer


def parameter_count(model: Any) -> ParameterCount:
    """The parameters of a PeftModel, which counts packed weights by their elements, or of a plain model."""
    if isinstance(model, PeftModel):
        trainable, total = model.get_nb_trainable_parameters()
    else:
        trainable, total = model.num_parameters(only_trainable=True), model.num_parameters()
    return ParameterCount(trainable=trainable, total=total, share=trainable / total)


def training_record(
    trainer: RowTrainer,
    config: TrainConfig,
    metrics: MetricsCallback,
    speedups: SpeedupReport | None,
    changes: dict[str, ChangeRecord] | None,
    checksum: str | None,
    size: int | None,
) -> TrainingRecord:
    """Describe a finished training; every process has to ask.

    Args:
        trainer: The trainer.
        config: The run's configuration.
        metrics: What was logged.
        speedups: The speedups in the model; None without.
        changes: How far the weights moved; None if that is not known.
        checksum: Of the written weights; None in processes that do not write.
        size: Bytes of the written weights.
    """
    return TrainingRecord(
        seconds=metrics.seconds,
        steps=trainer.state.global_step,
        epochs=float(trainer.state.epoch or 0.0),
        tokens=metrics.tokens,
        tokens_per_second=metrics.tokens / metrics.seconds if metrics.seconds else 0.0,
        peak_memory_bytes=max(gather_object([peak_memory_bytes()])),
        cpu_seconds=metrics.cpu_seconds,
        weights_bytes=size,
        final_loss=metrics.loss,
        skipped_steps=metrics.skipped,
        changes=changes,
        weights_checksum=checksum,
        speedups=speedups.record() if speedups else [],
        processes=ProcessesRecord(
            launcher=launched().launcher,
            processes=trainer.args.world_size,
            sharing=_sharing(trainer),
            batch_size=config.batch_size,
            micro_batch_size=trainer.args.per_device_train_batch_size,
            accumulation=trainer.args.gradient_accumulation_steps,
        ),
        layers=_layers(trainer.model) if config.engine == "doratune" else None,
    )


def _layers(model: Any) -> LayersRecord | None:
    """What computed the layers with LoRA or DoRA; None if there are none, or no forward pass has shown it."""
    calls = first_calls(model)
    if calls is None:  # also where PEFT has all of them
        left = left_to_peft(model)
        return LayersRecord(engine=0, left=left, uncalled=0) if left else None
    return LayersRecord(engine=calls.engine.total(), left=dict(calls.reasons), uncalled=calls.uncalled)


def _sharing(trainer: RowTrainer) -> Literal["none", "ddp", "fsdp", "fsdp2", "deepspeed"]:
    """How the processes share the model."""
    if trainer.args.world_size == 1:
        return "none"
    if trainer.is_deepspeed_enabled:
        return "deepspeed"
    if trainer.is_fsdp_enabled:
        return "fsdp2" if trainer.accelerator.is_fsdp2 else "fsdp"
    return "ddp"
