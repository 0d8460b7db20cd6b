"""``doratune train``."""

from __future__ import annotations

import shlex
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from doratune.cli.imports import lasting_imports
from doratune.cli.output import configure_logging, print_json, show_messages
from doratune.cli.parse import AsJson, PresetName, parse, part, peek
from doratune.data.mix import is_mix
from doratune.data.tasks import plain_name
from doratune.errors import InputError
from doratune.launch import first_process_speaks, launched, refuse_several
from doratune.settings import LaxPath, Positive, validate
from doratune.training.config import TrainConfig
from doratune.training.early import Rows, load_rows, refuse_early
from doratune.training.presets import Preset, load_preset
from doratune.training.run_directory import read_settings

if TYPE_CHECKING:
    from doratune.training.memory_estimate import Estimate

ABOUT = """Fine-tune a causal LM with LoRA or DoRA, or all of its weights, and write a run directory.

Examples:
  doratune train --method dora --data boolq/train.json --output finetuned_result/dora_r32
  doratune train --method lora --task sample-winogrande --format continuation --rows 500
                 --epochs 1 --output runs/lora
  doratune train --method full --task arc-easy --format continuation --learning-rate 2e-5 --output runs/full
  doratune train --preset llama-7b --method dora --task commonsense-mix --output runs/llama --dry-run
  doratune train --config runs/lora/config.yaml --seed 1 --output runs/lora-1
  accelerate launch -m doratune train --preset llama-7b --task commonsense-mix --output runs/llama
  torchrun --nproc-per-node 8 -m doratune train --preset llama-7b --task commonsense-mix
                 --output runs/llama
"""
FIRST = ("model", "method", "task", "data", "output")


class TrainCommand(TrainConfig):
    """The flags of ``doratune train``."""

    preset: PresetName = None
    config: LaxPath | None = None
    """Settings of an earlier run: its config.yaml; flags override it."""
    dry_run: bool = False
    """Print the run's parameters, rows, tokens, steps, memory and time; write nothing."""
    device: Literal["cpu", "cuda"] | None = None
    """With --dry-run: where the run will train; None: as on this machine."""
    processes: Positive | None = None
    """With --dry-run: how many processes will train together; None: one."""
    sharding: Literal["none", "zero-2", "fsdp"] | None = None
    """With --dry-run: what the processes divide: gradients and optimizer (zero-2), or weights too (fsdp, also
    for ZeRO-3); None: nothing."""
    resume: bool = False
    """Continue from the last checkpoint of an interrupted run."""
    overwrite: bool = False
    """Replace the run in the output folder."""
    as_json: AsJson = False
    """Print the record, or with --dry-run the estimate, as JSON."""


def main(argv: list[str]) -> int:
    """Run the verb."""
    with first_process_speaks():
        command = parse(TrainCommand, argv, verb="train", about=ABOUT, first=FIRST, defaults=_defaults(argv))
        config = part(TrainConfig, command)
        _refuse_without_dry_run(command)
    if command.dry_run:
        refuse_several(
            "a dry run works in one process",
            where="--dry-run",
            fix=f"start it without a launcher, and add --processes {launched().processes}",
        )

    show_messages()
    with _together():
        refuse_early(config, resume=command.resume, overwrite=command.overwrite)
        loaded = load_rows(config)
    if command.dry_run:
        _rehearse(command, config, loaded)
        return 0

    with lasting_imports():
        from doratune.training.train import train

    configure_logging()
    record = train(config, resume=command.resume, overwrite=command.overwrite, loaded=loaded)
    if not launched().speaks:
        return 0
    if command.as_json:
        print_json(record.to_dict())
    elif record.training is not None:
        print(
            f"trained {record.parameters.trainable:,} of {record.parameters.total:,} parameters in "
            f"{record.training.seconds:.0f} s ({record.training.tokens_per_second:,.0f} tokens/s)\n"
            f"run directory: {config.output}\n"
            f"next: {next_command(config)}"
        )
    return 0


def _refuse_without_dry_run(command: TrainCommand) -> None:
    given = [name for name in ("device", "processes", "sharding") if getattr(command, name) is not None]
    if given and not command.dry_run:
        raise InputError(
            "only a dry run can be for another machine",
            where=", ".join(f"--{name}" for name in given),
            fix="add --dry-run; a run itself takes its processes from torchrun or accelerate launch",
        )


def next_command(config: TrainConfig) -> str:
    """The command that evaluates a run, and below it what is left to fill in.

    A run on rows of a file is tested on a file: the one called test that lies next to the training rows,
    if there is one.
    """
    name = (config.task or ["TASK"])[0]
    words = ["doratune", "eval", str(config.output), "--task", name]
    if config.data is not None and not is_mix(name):
        folder = config.data / plain_name(name) if config.data.is_dir() else config.data.parent
        found = [file for file in (folder / "test.json", folder / "test.jsonl") if file.is_file()]
        words += ["--data", str(found[0]) if found else "TEST_ROWS"]
    blanks = {
        "TASK": "a name that doratune tasks lists",
        "TEST_ROWS": "a file with rows that were not trained on",
    }
    lines = [shlex.join(words), *(f"      {word}: {what}" for word, what in blanks.items() if word in words)]
    return "\n".join(lines)


def _defaults(argv: list[str]) -> dict[str, Any]:
    """The settings of a preset or of an earlier run, which flags override."""
    known = peek(argv, "preset", "config", "method")
    if known["preset"] and known["config"]:
        raise InputError(
            "the settings come from a preset or from an earlier run, not from both",
            where="--preset, --config",
            fix="give one of the two",
        )
    if known["config"]:
        return read_settings(Path(known["config"]))
    preset = load_preset(known["preset"]) if known["preset"] else Preset()
    settings = preset.for_method(known["method"] or preset.settings.get("method") or "dora")
    validate(TrainConfig, {"output": "-", **settings}, where=preset.source)
    return settings


def _together() -> AbstractContextManager[None]:
    """Of several processes, none goes on if one cannot; a lone one does without torch."""
    if launched().processes == 1:
        return nullcontext()
    with lasting_imports():
        from doratune.processes import join_processes, together
    join_processes()
    return together()


def _rehearse(command: TrainCommand, config: TrainConfig, loaded: Rows) -> None:
    with lasting_imports():
        from doratune.report.numbers import gigabytes
        from doratune.training.rehearsal import rehearse

    from doratune.duration import about

    configure_logging()
    found = rehearse(
        config,
        loaded,
        device=command.device,
        processes=command.processes,
        sharding=command.sharding,
        resume=command.resume,
        overwrite=command.overwrite,
    )
    if command.as_json:
        print_json({**asdict(found), "peak_bytes": found.peak_bytes, "size": _size_as_json(found.size)})
        return
    time = "not measured" if found.seconds is None else f"{about(found.seconds)}, estimated from a few rows"
    size, memory = found.size, found.size and found.size.memory
    lines = {
        "parameters": "not known"
        if size is None
        else f"{size.trainable:,} of {size.total:,} trained ({size.trainable / size.total:.2%})",
        "rows": f"{found.rows:,}, of at most {found.longest:,} tokens",
        "tokens": f"{found.tokens:,} to train on",
        "steps": f"{found.steps:,} of {config.batch_size} rows, {found.warmup_steps:,} of them warm-up",
        "time": time,
        "memory": "not known",
    }
    if found.peak_bytes is not None and memory is not None:
        whole = "all devices together" if config.device_map else "each process"
        where = "CPU" if found.target.device == "cpu" else "GPU"
        lines["memory"] = f"about {gigabytes(found.peak_bytes)} for {whole} on a {where}"
        if found.peak_bytes > memory.total:
            lines["memory"] += f", while the weights are loaded; in a step {gigabytes(memory.total)}"
        lines |= {f"  {name}": gigabytes(held) for name, held in asdict(memory).items() if held}
    for name, what in lines.items():
        print(f"{name:<13} {what}")
    print("nothing was written")


def _size_as_json(size: Estimate | None) -> dict[str, Any] | None:
    if size is None:
        return None
    memory = size.memory and {"parts": asdict(size.memory), "total": size.memory.total}
    return {**asdict(size), "memory": memory}
