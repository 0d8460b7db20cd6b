"""``doratune train``."""

from __future__ import annotations

from doratune.cli.imports import lasting_imports
from doratune.cli.output import configure_logging, print_json, show_messages
from doratune.cli.parse import AsJson, PresetName, parse, part, peek
from doratune.settings import validate
from doratune.training.config import TrainConfig
from doratune.training.early import load_rows, refuse_early
from doratune.training.presets import Preset, load_preset

ABOUT = """Fine-tune a causal LM with LoRA or DoRA, or all of its weights, and write a run directory.

Examples:
  doratune train --method dora --data boolq/train.json --output finetuned_result/dora_r32
  doratune train --method lora --task sample-winogrande --format continuation --rows 500
                 --epochs 1 --warmup-steps 5 --output runs/lora
  doratune train --method full --task arc-easy --format continuation --learning-rate 2e-5 --output runs/full
  doratune train --preset llama-7b --method dora --task commonsense-mix --output runs/llama
  accelerate launch -m doratune train --preset llama-7b --task commonsense-mix --output runs/llama
"""


class TrainCommand(TrainConfig):
    """The flags of ``doratune train``."""

    preset: PresetName = None
    resume: bool = False
    """Continue from the last checkpoint of an interrupted run."""
    overwrite: bool = False
    """Replace the run in the output folder."""
    as_json: AsJson = False
    """Print the record as JSON."""


def main(argv: list[str]) -> int:
    """Run the verb."""
    known = peek(argv, "preset", "method")
    preset = load_preset(known["preset"]) if known["preset"] else Preset()
    settings = preset.for_method(known["method"] or preset.settings.get("method") or "dora")
    validate(TrainConfig, {"output": "-", **settings}, where=preset.source)
    command = parse(TrainCommand, argv, verb="train", about=ABOUT, defaults=settings)
    config = part(TrainConfig, command)

    show_messages()
    refuse_early(config, resume=command.resume, overwrite=command.overwrite)
    loaded = load_rows(config)
    with lasting_imports():
        from doratune.training.train import train

    configure_logging()
    record = train(config, resume=command.resume, overwrite=command.overwrite, loaded=loaded)
    if command.as_json:
        print_json(record.to_dict())
    elif record.training is not None:
        print(
            f"trained {record.parameters.trainable:,} of {record.parameters.total:,} parameters in "
            f"{record.training.seconds:.0f} s ({record.training.tokens_per_second:,.0f} tokens/s)\n"
            f"run directory: {config.output}\n"
            f"next: doratune eval {config.output} --task {(config.task or ['TASK'])[0]}"
        )
    return 0
