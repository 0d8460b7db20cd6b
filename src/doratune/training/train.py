"""One training run, from its configuration to its record."""

from __future__ import annotations

import datetime
import logging
import math
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from peft import PeftModel
from transformers import PrinterCallback, set_seed

from doratune.data.examples import Example
from doratune.duration import about
from doratune.environment import describe_environment
from doratune.errors import InputError, StoppedError
from doratune.hub import without_telemetry
from doratune.methods.find import get_method, own_definition, plain_name
from doratune.models.context import positions
from doratune.models.fingerprint import model_record
from doratune.models.load import LoadedModel, load_model, on_cpu, own_device
from doratune.models.precision import resolve_dtype
from doratune.peft.adapter_file import refuse_changed_settings
from doratune.peft.load import fill_adapter
from doratune.processes import fsdp_asked, in_first, join_processes, same_end, together
from doratune.records.adapter_folder import read_adapter_settings, told_settings
from doratune.records.layout import CHECKPOINTS_NAME, checkpoints, weights_path
from doratune.records.run import DataRecord, ModelRecord, RunRecord
from doratune.records.storage import write_base_model, write_record
from doratune.records.weights import weights_bytes, weights_checksum
from doratune.settings import SEEDS
from doratune.speedups import SpeedupReport, speed_up
from doratune.training import run_directory
from doratune.training._internals import DEVICES_NAME, TRAINING_ARGS_NAME, SFTConfig
from doratune.training.adapter import add_adapter
from doratune.training.callbacks import MetricsCallback, StopCallback
from doratune.training.card import name_base, write_card
from doratune.training.changes import changes_since, starting_point
from doratune.training.checkpoints import (
    CheckpointCallback,
    refuse_other_base,
    refuse_other_data,
    refuse_other_method,
)
from doratune.training.config import TrainConfig
from doratune.training.data import name_rows
from doratune.training.early import Rows, load_rows, micro_batch, refuse_early
from doratune.training.estimate import seconds_per_step
from doratune.training.progress import ProgressCallback
from doratune.training.sharded import load_in_every_process
from doratune.training.tokenise import encode_examples
from doratune.training.trainer import RowTrainer
from doratune.training.training_record import parameter_count, training_record

logger = logging.getLogger(__name__)


def train(
    config: TrainConfig, *, resume: bool = False, overwrite: bool = False, loaded: Rows | None = None
) -> RunRecord:
    """Train an adapter, or all weights, and write the run directory.

    Args:
        config: The resolved configuration.
        resume: Continue from the last checkpoint in ``config.output``.
        overwrite: Replace the run in ``config.output``.
        loaded: The result of ``load_rows`` for the configuration, if it has been called.

    Returns:
        The run's record, also written to record.json; the same in all processes of a launch.

    Raises:
        InputError: If the configuration, the data or the model cannot be used; nothing is written then.
        OtherProcessError: Another process of the launch failed, or has the error to show that all have.
        StoppedError: On Ctrl-C or SIGTERM, after saving a checkpoint.
        DivergedError: A loss, a gradient or a parameter is not finite; no weights are saved from then on.
        DoratuneError: Training did not change any weight.
    """
    started = datetime.datetime.now(datetime.UTC)
    method = plain_name(config.method)
    definition = own_definition(config.method)
    join_processes()
    if fsdp_asked():
        load_in_every_process()
    with together():
        refuse_early(config, resume=resume, overwrite=overwrite)
        examples, data = loaded or load_rows(config)
    checkpoint = in_first(lambda: _checkpoint(config, data)) if resume else None
    with together():
        base = load_base(config)
        base_record = model_record(base)
        if checkpoint is not None:
            refuse_other_base(checkpoint, base_record)
        rows = encode_rows(config, base, examples)
    metrics, stop = MetricsCallback(config.output), StopCallback()
    with together():
        trainer, speedups = build_trainer(
            config, base, rows, metrics, stop, examples=examples, base_record=base_record, data=data
        )
        model: Any = trainer.model
        parameters, start = parameter_count(model), starting_point(model)
        if checkpoint is not None and isinstance(trainer.model, PeftModel):
            _refuse_other_adapter(trainer.model, checkpoint)
            fill_adapter(trainer.model, checkpoint)  # transformers passes over what does not match
    with same_end(), run_directory.opened(config, again=resume or overwrite, afresh=checkpoint is None):
        logger.info("training %s with %s on %d rows", base.name, method, len(rows))
        _say_how_long(trainer, config, checkpoint)
        try:
            trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
        finally:
            stop.give_back()
        done, planned = trainer.state.global_step, trainer.state.max_steps
        if stop.number and done < planned:
            raise StoppedError(
                stop.number,
                f"training was interrupted after step {done} of {planned}",
                where=str(config.output),
                fix="run the same command with --resume to continue from there",
            )
        trainer.check_final()
        folder = weights_path(config.output, method)
        with together():
            changes = changes_since(start, model)
            checksum = _save_weights(trainer, folder, base_record)
        size = weights_bytes(folder) if checksum is not None else None
        training = training_record(trainer, config, metrics, speedups, changes, checksum, size)

        def write() -> RunRecord:
            record = RunRecord(
                name=config.output.name,
                method=method,
                definition=definition,
                adapter=None if method == "full" else told_settings(read_adapter_settings(folder)),
                config=config.model_dump(mode="json"),
                model=base_record,
                parameters=parameters,
                data=data,
                seed=config.seed,
                training=training,
                evaluations=[],
                environment=describe_environment(),
                started=started,
                finished=datetime.datetime.now(datetime.UTC),
            )
            if method != "full":
                name_base(folder, config.model)
                write_card(folder, record)
            write_record(config.output, record)
            return record

        return in_first(write)


def _refuse_other_adapter(model: PeftModel, checkpoint: Path) -> None:
    """Refuse to resume from a checkpoint of another adapter, as when PEFT's defaults have changed."""
    with tempfile.TemporaryDirectory(prefix="doratune-") as scratch:
        model.peft_config["default"].save_pretrained(scratch)
        expected = told_settings(read_adapter_settings(Path(scratch)))
    refuse_changed_settings(expected, checkpoint)


def _checkpoint(config: TrainConfig, data: Sequence[DataRecord]) -> Path | None:
    """The checkpoint to resume from, checked to be of the same method and rows."""
    checkpoint = run_directory.checkpoint_to_resume(config)
    if checkpoint is not None:
        refuse_other_method(checkpoint, get_method(config.method))
        refuse_other_data(checkpoint, data)
    return checkpoint


def load_base(config: TrainConfig) -> LoadedModel:
    """Load the base model of a run.

    Full fine-tuning keeps weights in float32 unless a type is given: an update is often smaller than a
    weight's last bit in bfloat16, and would be lost.

    Raises:
        InputError: If it cannot be found or read.
    """
    return load_model(
        config.model,
        dtype="float32" if _keeps_float32(config) else config.dtype,
        load_in_4bit=config.load_in_4bit,
        device_map=config.device_map,
        trust_remote_code=config.trust_remote_code,
        moves=not fsdp_asked(),  # no device has to hold the whole model
    )


def encode_rows(config: TrainConfig, base: LoadedModel, examples: list[Example]) -> Dataset:
    """The rows that a run trains on, in the seed's order.

    Raises:
        InputError: Rows are too long, for the cutoff or the model.
    """
    return encode_examples(
        examples,
        base.tokenizer,
        cutoff=config.cutoff,
        drop_long_rows=config.drop_long_rows,
        loss_on_prompt=config.loss_on == "prompt-and-answer",
        context=positions(base.model.config),
    ).shuffle(seed=config.seed, keep_in_memory=True)


def split_rows(config: TrainConfig, rows: Dataset) -> tuple[Dataset, Dataset | None]:
    """The rows to train on, and the validation rows if the configuration asks for some.

    Raises:
        InputError: No row is left to train on.
    """
    if not config.validation_share:
        return rows, None
    held_out = math.ceil(config.validation_share * len(rows))
    if held_out == len(rows):
        raise InputError("no row is left to train on", where="--validation-share", got=f"{held_out} rows")
    # The rows are in the seed's order already; datasets' own split would write into the cache entry.
    return rows.select(range(held_out, len(rows))), rows.select(range(held_out))


def build_trainer(
    config: TrainConfig,
    base: LoadedModel,
    rows: Dataset,
    metrics: MetricsCallback,
    stop: StopCallback,
    *,
    examples: Sequence[Example] = (),
    base_record: ModelRecord | None = None,
    data: Sequence[DataRecord] = (),
) -> tuple[RowTrainer, SpeedupReport | None]:
    """Build a run's trainer, adding an adapter to ``base`` if the method has one. Writes nothing.

    Args:
        config: The run's configuration.
        base: The result of ``load_base``.
        rows: ``input_ids`` and ``labels``, from ``encode_examples``.
        metrics: Writes the run's metrics.jsonl.
        stop: Stops the run on Ctrl-C or SIGTERM.
        examples: The examples of the rows, to name rows in messages.
        base_record: The base model's record, written to checkpoints.
        data: The records of the training rows, written to checkpoints.

    Returns:
        The trainer, and the speedups in its model; None with ``speedups`` off.

    Raises:
        InputError: The configuration does not fit the model or the number of rows.
    """
    set_seed(config.seed)
    method = get_method(config.method)
    model = base.model if config.method == "full" else add_adapter(base.model, config)
    dtype = resolve_dtype("auto", own_device().type) if _keeps_float32(config) else base.dtype
    rows, validation = split_rows(config, rows)
    args = _arguments(config, dtype, len(rows), validates=validation is not None)
    with without_telemetry():  # TRL reports every new trainer to the hub
        trainer = RowTrainer(
            model,
            args,
            rows,
            on_nonfinite=config.on_nonfinite,
            loraplus_ratio=method.optimizer.ratio,
            name_rows=lambda chosen: (
                name_rows([examples[row] for row in rows.select(chosen)["example"]])
                if examples
                else str(chosen)
            ),
            eval_dataset=validation,
            processing_class=base.tokenizer,
            callbacks=[
                metrics,
                ProgressCallback(metrics, plain_name(config.method)),
                stop,
                CheckpointCallback(
                    config.output,
                    keep=config.keep_checkpoints,
                    model=config.model,
                    base=base_record,
                    data=data,
                    method=method,
                ),
            ],
        )
    trainer.remove_callback(PrinterCallback)
    speedups = (
        speed_up(base.model, training=True, sharded=trainer.is_fsdp_enabled)
        if config.speedups == "on"
        else None
    )
    if args.process_index:
        set_seed((config.seed + args.process_index) % SEEDS)  # or all processes would drop the same elements
    return trainer, speedups


def _say_how_long(trainer: RowTrainer, config: TrainConfig, checkpoint: Path | None) -> None:
    """Log the number of steps and the estimated time on this machine."""
    steps = config.total_steps(len(trainer.batches.lengths))
    done = next((step for step, folder in checkpoints(config.output).items() if folder == checkpoint), 0)
    each = seconds_per_step(trainer)
    time = "" if each is None else f", {about(each * (steps - done))} on this machine (estimated)"
    logger.info("%s%s", f"{steps - done:,} of {steps:,} steps left" if done else f"{steps:,} steps", time)


def _arguments(config: TrainConfig, dtype: torch.dtype, rows: int, *, validates: bool) -> SFTConfig:
    args = SFTConfig(
        output_dir=str(config.output / CHECKPOINTS_NAME),
        num_train_epochs=config.epochs,
        max_steps=config.steps or -1,
        learning_rate=config.learning_rate,
        lr_scheduler_type=config.schedule if config.schedule != "constant" else "constant_with_warmup",
        warmup_steps=config.warmup(config.total_steps(rows)),
        weight_decay=config.weight_decay,
        max_length=None,
        dataset_kwargs={"skip_prepare_dataset": True},
        use_cpu=on_cpu(),  # without it bfloat16 on a CPU is refused
        bf16=dtype == torch.bfloat16,
        fp16=dtype == torch.float16,
        gradient_checkpointing=config.gradient_checkpointing,
        gradient_checkpointing_kwargs={"use_reentrant": False} if config.gradient_checkpointing else None,
        logging_steps=1,
        logging_nan_inf_filter=False,
        eval_strategy="steps" if validates else "no",
        eval_steps=config.save_steps,
        save_strategy="steps",
        save_steps=config.save_steps,
        seed=config.seed,
        data_seed=config.seed,
        report_to=config.report_to or "none",
        disable_tqdm=True,
        dataloader_pin_memory=torch.cuda.is_available(),
    )
    use_one_device(args, device_map=config.device_map)
    _share_out(config, args)
    return args


def use_one_device(args: SFTConfig, *, device_map: str | None = None) -> None:
    """Keep the Trainer from copying the model to all GPUs in every step, as it does in a lone process."""
    if args.n_gpu > 1:
        if device_map is None:
            logger.info(
                "one of %d GPUs is used; to use all: torchrun --nproc-per-node %d -m doratune train ...",
                args.n_gpu,
                args.n_gpu,
            )
        setattr(args, DEVICES_NAME, 1)


def _share_out(config: TrainConfig, args: SFTConfig) -> None:
    """Set the micro-batches of each process."""
    micro = micro_batch(config, args.world_size)
    args.per_device_train_batch_size = args.per_device_eval_batch_size = micro
    args.gradient_accumulation_steps = config.batch_size // (micro * args.world_size)


def _keeps_float32(config: TrainConfig) -> bool:
    """Whether the weights stay float32, whatever type they are computed in."""
    return config.method == "full" and config.dtype == "auto"


def _save_weights(trainer: RowTrainer, folder: Path, base: ModelRecord) -> str | None:
    """Write the adapter as PEFT does, or the model as transformers does, without pickled arguments.

    Returns:
        The checksum of the written weights; None in processes that do not write.
    """
    trainer.save_model(str(folder))
    if not trainer.is_world_process_zero():
        return None
    (folder / TRAINING_ARGS_NAME).unlink(missing_ok=True)
    if isinstance(trainer.model, PeftModel):
        write_base_model(folder, base)  # an adapter may be evaluated without its run
    return weights_checksum(folder)
