"""``doratune methods``."""

from __future__ import annotations

from doratune.cli.parse import parse, print_list
from doratune.settings import Settings

ABOUT = """List the training methods, one per line.

Examples:
  doratune methods
"""

METHODS = {
    "lora": "two low-rank matrices for each adapted layer: W + s·B·A",
    "dora": "LoRA's direction and a trained magnitude for each output: m · (W + s·B·A) / ‖W + s·B·A‖",
    "full": "every weight of the model, no adapter",
    "dora-attached-norm": "dora with a gradient through the norm: a method of study plans; "
    "in train --method dora --norm-gradient",
}


class MethodsCommand(Settings):
    """``doratune methods`` has no flags."""


def main(argv: list[str]) -> int:
    """Run the verb."""
    parse(MethodsCommand, argv, verb="methods", about=ABOUT)
    print_list(METHODS)
    return 0
