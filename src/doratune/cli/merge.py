"""``doratune merge``."""

from __future__ import annotations

from doratune.cli.parse import AsJson, parse, part
from doratune.serving.merging.config import MergeConfig

ABOUT = """Merge an adapter into its base model. The result is a plain Hugging Face folder that transformers
loads with neither doratune nor PEFT. One weight is in memory at a time. The folder is read back and its
predictions are compared with those of base and adapter; if they differ by more than rounding explains, the
command fails and the folder is named OUTPUT-unusable.

Examples:
  doratune merge runs/dora --output models/dora
  doratune merge path/to/peft_adapter --base models/llama --dtype bfloat16 --output models/merged
  doratune merge runs/qdora --dequantised --output models/qdora
"""
FIRST = ("run", "output", "base", "dequantised", "dtype")


class MergeCommand(MergeConfig):
    """The flags of ``doratune merge``."""

    as_json: AsJson = False
    """Print the record as JSON."""


def main(argv: list[str]) -> int:
    """Run the verb."""
    command = parse(MergeCommand, argv, verb="merge", about=ABOUT, first=FIRST)

    from doratune.cli.output import configure_logging, new_console, print_json
    from doratune.report.terminal import print_merge
    from doratune.serving.merging.merge import merge, unusable

    configure_logging()
    record = merge(part(MergeConfig, command))
    if command.as_json:
        print_json(record.to_dict())
    else:
        print_merge(record, new_console())
    if not record.usable:
        raise unusable(record)
    return 0
