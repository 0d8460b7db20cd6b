"""``doratune compare``."""

from __future__ import annotations

import shlex
from typing import Annotated

import tyro

from doratune.cli.parse import PresetName, parse, peek
from doratune.cli.rendering import publish
from doratune.settings import validate
from doratune.study.config import CompareConfig
from doratune.training.presets import Preset, load_preset

ABOUT = """Evaluate a base model, train it with LoRA and with DoRA on the same rows, order, seed and budget,
evaluate both, and write the table, comparison.json, comparison.md and report.html.

Examples:
  doratune compare --preset demo --output runs/demo
  doratune compare --task arc-easy --format continuation --epochs 1 --learning-rate 5e-4
                   --output runs/arc-easy
  doratune compare --task boolq --data boolq/train.json --test-data boolq/test.json --rows 2000
                   --epochs 1 --output runs/boolq
"""


class CompareCommand(CompareConfig):
    """The flags of ``doratune compare``."""

    preset: PresetName = None
    resume: bool = False
    """Go on with an interrupted comparison; finished arms are kept."""
    overwrite: bool = False
    """Start the comparison in the output folder again."""
    as_json: Annotated[bool, tyro.conf.arg(name="json")] = False
    """Print the comparison as JSON."""


def main(argv: list[str]) -> int:
    """Run the verb."""
    known = peek(argv, "preset")
    preset = load_preset(known["preset"]) if known["preset"] else Preset()
    settings = {**preset.settings, **preset.compare}
    validate(CompareConfig, {"output": "-", **settings}, where=preset.source)
    command = parse(CompareCommand, argv, verb="compare", about=ABOUT, defaults=settings)
    config = CompareConfig(**command.model_dump(include=set(CompareConfig.model_fields)))
    for method, overrides in preset.methods.items():
        validate(
            CompareConfig,
            {"output": "-", **settings, **overrides},
            where=f"{preset.source}, methods.{method}",
        )

    from doratune.cli.output import configure_logging, show_messages
    from doratune.study.arms import run_arms
    from doratune.study.comparison import build_comparison

    show_messages()
    runs = run_arms(
        config,
        preset.methods,
        resume=command.resume,
        overwrite=command.overwrite,
        initializer=configure_logging,
    )
    reproduce = shlex.join(
        ["doratune", "compare", *(word for word in argv if word not in ("--resume", "--overwrite"))]
    )
    comparison = build_comparison(
        runs, title=f"LoRA and DoRA on {', '.join(config.task)}", reproduce=reproduce
    )
    publish(comparison, config.output, as_json=command.as_json)
    return 0
