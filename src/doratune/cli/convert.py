"""``doratune convert``."""

from __future__ import annotations

from doratune.cli.imports import lasting_imports
from doratune.cli.parse import AsJson, parse, part
from doratune.serving.converting.config import ConvertConfig

ABOUT = """Convert a DoRA adapter into a plain LoRA, which other software loads, and say what that costs.

Examples:
  doratune convert runs/dora --rank 32 --output runs/lora
  doratune convert runs/dora --rank auto --max-kl 0.001 --output runs/lora
  doratune convert runs/dora --rank 16 --task arc-easy --eval-rows 500 --output runs/lora
  doratune convert runs/dora --exact --output runs/exact
"""
FIRST = ("target", "output", "rank", "max_kl", "exact")


class ConvertCommand(ConvertConfig):
    """The flags of ``doratune convert``."""

    as_json: AsJson = False
    """Print the record as JSON."""


def main(argv: list[str]) -> int:
    """Run the verb."""
    command = parse(ConvertCommand, argv, verb="convert", about=ABOUT, first=FIRST)
    config = part(ConvertConfig, command)

    with lasting_imports():
        from doratune.cli.output import configure_logging, new_console, print_json
        from doratune.report.terminal import print_conversion
        from doratune.serving.converting.convert import convert

    configure_logging()
    record = convert(config)
    if command.as_json:
        print_json(record.to_dict())
    else:
        print_conversion(record, config.output, new_console())
    return 0
