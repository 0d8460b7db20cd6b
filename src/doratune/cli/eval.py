"""``doratune eval``."""

from __future__ import annotations

from typing import Annotated

import tyro

from doratune.cli.parse import parse
from doratune.evaluation.config import EvalConfig

ABOUT = """Evaluate a run directory, an adapter folder or a base model.

Examples:
  doratune eval finetuned_result/dora_r32 --task boolq
  doratune eval finetuned_result/dora_r32 --task boolq --data boolq/test.json --protocol generate
  doratune eval smollm2-135m --task sample-boolq sample-winogrande --format continuation
  doratune eval path/to/peft_adapter --task hellaswag --limit 500 --output runs/adapter
"""


class EvalCommand(EvalConfig):
    """The flags of ``doratune eval``."""

    overwrite: bool = False
    """Replace evaluations that are already there."""
    as_json: Annotated[bool, tyro.conf.arg(name="json")] = False
    """Print the record as JSON."""


def main(argv: list[str]) -> int:
    """Run the verb."""
    command = parse(EvalCommand, argv, verb="eval", about=ABOUT)
    config = EvalConfig(**command.model_dump(include=set(EvalConfig.model_fields)))

    from doratune.cli.output import configure_logging, print_json
    from doratune.evaluation.evaluate import evaluate
    from doratune.report.terminal import print_evaluations

    configure_logging()
    record = evaluate(config, overwrite=command.overwrite)
    if command.as_json:
        print_json(record.to_dict())
    else:
        print_evaluations(record)
    return 0
