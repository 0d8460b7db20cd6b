"""``doratune train``."""

from __future__ import annotations

import shlex
from dataclasses import asdict
from pathlib import Path
from typing import Any

from doratune.cli.imports import lasting_imports
from doratune.cli.output import configure_logging, print_json, show_messages
from doratune.cli.parse import AsJson, PresetName, parse, part, peek
from doratune.errors import InputError
from doratune.settings import LaxPath, validate
from doratune.training.config import TrainConfig
from doratune.training.early import Rows, load_rows, refuse_early
from doratune.training.presets import Preset, load_preset
from doratune.training.run_directory import read_settings

ABOUT = """Fine-tune a causal LM with LoRA or DoRA, or all of its weights, and write a run directory.

Examples:
  doratune train --method dora --data boolq/train.json --output finetuned_result/dora_r32
  doratune train --method lora --task sample-winogrande --format continuation --rows 500
                 --epochs 1 --output runs/lora
  doratune train --method full --task arc-easy --format continuation --learning-rate 2e-5 --output runs/full
  doratune train --preset llama-7b --method dora --task commonsense-mix --output runs/llama --dry-run
  doratune train --config runs/lora/config.yaml --seed 1 --output runs/lora-1
  accelerate launch -m doratune train --preset llama-7b --task commonsense-mix --output runs/llama
"""
FIRST = ("model", "method", "task", "data", "output")


class TrainCommand(TrainConfig):
    """The flags of ``doratune train``."""

    preset: PresetName = None
    config: LaxPath | None = None
    """Settings of an earlier run: its config.yaml; flags override it."""
    dry_run: bool = False
    """Say what the run will take in rows, tokens, steps, time and memory; write nothing."""
    resume: bool = False
    """Continue from the last checkpoint of an interrupted run."""
    overwrite: bool = False
    """Replace the run in the output folder."""
    as_json: AsJson = False
    """Print the record, or with --dry-run the estimate, as JSON."""


def main(argv: list[str]) -> int:
    """Run the verb."""
    command = parse(TrainCommand, argv, verb="train", about=ABOUT, first=FIRST, defaults=_defaults(argv))
    config = part(TrainConfig, command)

    show_messages()
    refuse_early(config, resume=command.resume, overwrite=command.overwrite)
    loaded = load_rows(config)
    if command.dry_run:
        _rehearse(command, config, loaded)
        return 0

    with lasting_imports():
        from doratune.training.train import train

    configure_logging()
    record = train(config, resume=command.resume, overwrite=command.overwrite, loaded=loaded)
    if command.as_json:
        print_json(record.to_dict())
    elif record.training is not None:
        task = (config.task or ["TASK"])[0]
        print(
            f"trained {record.parameters.trainable:,} of {record.parameters.total:,} parameters in "
            f"{record.training.seconds:.0f} s ({record.training.tokens_per_second:,.0f} tokens/s)\n"
            f"run directory: {config.output}\n"
            f"next: doratune eval {shlex.quote(str(config.output))} --task {shlex.quote(task)}"
        )
    return 0


def _defaults(argv: list[str]) -> dict[str, Any]:
    """What flags override: the settings of a preset, or of an earlier run."""
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


def _rehearse(command: TrainCommand, config: TrainConfig, loaded: Rows) -> None:
    with lasting_imports():
        from doratune.report.numbers import gigabytes
        from doratune.training.rehearsal import rehearse

    from doratune.duration import about

    configure_logging()
    found = rehearse(config, loaded, resume=command.resume, overwrite=command.overwrite)
    if command.as_json:
        print_json(asdict(found))
        return
    time = "not known" if found.seconds is None else f"{about(found.seconds)}, estimated from a few rows"
    memory = "not known"
    if found.memory_bytes is not None:
        memory = f"about {gigabytes(found.memory_bytes)}, measured with the longest rows"
    lines = {
        "rows": f"{found.rows:,}, of at most {found.longest:,} tokens",
        "tokens": f"{found.tokens:,} to train on",
        "steps": f"{found.steps:,} of {config.batch_size} rows, {found.warmup_steps:,} of them warm-up",
        "time": time,
        "memory": memory,
    }
    for name, what in lines.items():
        print(f"{name:<7} {what}")
    print("nothing was written")
