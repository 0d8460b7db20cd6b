"""What training and evaluating cost as a whole, compared with the original study's way of computing.

    python benchmarks/pipeline --train-data boolq/train.json --test-data boolq/test.json
    python benchmarks/pipeline --train-data boolq/train.json --test-data boolq/test.json --train-rows 64 \
        --test-rows 24 --dtype float32 --output pipeline.json

Trains with DoRA and evaluates, each a command as a user types it: doratune's, and in turn those of
``reference.py``, which computes as the original study did: stock PEFT in transformers' Trainer, then beam
search one row at a time on the merged model. Shows time and memory of each command, and the share of rows in
which both give the same answer for the same adapter.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import tyro
from rich.console import Console

sys.path[0] = str(Path(__file__).parents[1])  # this package's folder, where Python puts the package itself

from doratune.cli.output import print_json, show_messages
from doratune.errors import DoratuneError
from pipeline.bench import bench_pipeline
from pipeline.commands import PipelineBenchConfig
from pipeline.table import pipeline_renderable


class Command(PipelineBenchConfig):
    """The flags."""

    overwrite: bool = False
    """Replace the output file."""
    as_json: Annotated[bool, tyro.conf.arg(name="json")] = False
    """Print the record as JSON."""


def main(argv: list[str]) -> int:
    """Measure, and show the record; bad input ends in exit code 2, as in doratune."""
    command = tyro.cli(Command, args=argv, prog="python benchmarks/pipeline", description=__doc__)
    config = PipelineBenchConfig(**command.model_dump(include=set(PipelineBenchConfig.model_fields)))
    show_messages()
    try:
        record = bench_pipeline(config, overwrite=command.overwrite)
    except DoratuneError as error:
        print(f"pipeline: {error.message}", file=sys.stderr)
        return error.exit_code
    if command.as_json:
        print_json(record.to_dict())
        return 0
    console = Console()
    console.print(pipeline_renderable(record))
    if command.output is not None:
        console.print(f"written: {command.output}", highlight=False, soft_wrap=True)
    return 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
