"""Checks of an evaluation before torch is imported and a model is loaded."""

from __future__ import annotations

from doratune.data.mix import without_mix
from doratune.data.reader import read_rows
from doratune.data.source import refuse_without_file
from doratune.data.tasks import get_task
from doratune.errors import InputError
from doratune.evaluation.config import EvalConfig
from doratune.evaluation.found import Found, find_trained, output_folder
from doratune.launch import launched, refuse_lone_process
from doratune.models.names import refuse_unknown_model
from doratune.records.folders import refuse_output


def refuse_early(config: EvalConfig) -> Found:
    """Refuse unusable targets, tasks, files and outputs, as far as can be told without a model.

    Returns:
        What the target is.

    Raises:
        InputError: One of them cannot be used.
    """
    refuse_lone_process()
    refuse_unknown_model(config.target, where="doratune eval", what="run, adapter or model")
    if config.model is not None:
        refuse_unknown_model(config.model)
    if config.format == "continuation":
        refuse_generated_texts(config, "continuation")
    if not config.task and not config.text:
        raise InputError("no task to evaluate", where="--task", fix="name one or more tasks, or add --text")
    if not config.task and (rows := _about_rows(config)):
        raise InputError(
            "doratune's text has no rows to choose and no format",
            where=f"--text without --task, {', '.join(rows)}",
            fix="name a task, or leave them out",
        )
    names = without_mix(config.task)
    if config.data is not None and len(names) != 1:
        raise InputError("one file holds rows of one task only", where="--task", got=" ".join(config.task))
    if config.split == "validation" and config.data is None:
        raise InputError("validation rows can only come from a file", where="--split", fix="add --data")
    found = find_trained(config.target)
    refuse_divided_model(config, found)
    refuse_output(output_folder(config, found))
    own = {one.task: one.definition for one in found.record.data} if found.record else {}
    for name in names:
        if own.get(name) is None:  # else the run has the task's file
            task = get_task(name)
            if config.data is None:
                refuse_without_file(task, "test")
    if config.data is not None and not config.data.is_file():
        read_rows(config.data)  # its errors name the fault
    return found


def _about_rows(config: EvalConfig) -> list[str]:
    """The flags given that only matter to a task's rows."""
    names = ("data", "split", "format", "protocol", "eval_rows")
    default = EvalConfig.model_fields
    return [f"--{name.replace('_', '-')}" for name in names if getattr(config, name) != default[name].default]


def refuse_divided_model(config: EvalConfig, found: Found) -> None:
    """Refuse to divide a model among several processes, as they divide the rows.

    Raises:
        InputError: ``--device-map``, the run's own device map, or a launcher's FSDP or DeepSpeed.
    """
    count = launched().processes
    if count == 1:
        return
    from doratune.processes import divided_by_launcher

    asked = [f"accelerate launch {flag}" for flag in divided_by_launcher()]
    if config.device_map:
        asked.append(f"--device-map {config.device_map}")
    elif found.record and found.record.config.get("device_map"):
        asked.append(f"device_map of {config.target}")
    if asked:
        raise InputError(
            "several processes divide the rows of an evaluation, and each has the whole model",
            where=", ".join(asked),
            got=f"{count} processes",
            fix="leave it out, or start one process: --device-map auto divides a large model among the GPUs",
        )


def refuse_generated_texts(config: EvalConfig, form: str) -> None:
    """Refuse the protocol generate for a format without answer labels.

    Raises:
        InputError: The format has no labels.
    """
    if config.protocol == "generate" and form != "instruct":
        raise InputError(
            "generated text can only be matched against answer labels",
            where="--protocol generate",
            got=f"--format {form}",
            expected="--format instruct",
        )
