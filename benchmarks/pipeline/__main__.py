"""Time and memory of training and evaluation as a whole, compared with the original study's way.

    python benchmarks/pipeline --train-data boolq/train.json --test-data boolq/test.json
    python benchmarks/pipeline --train-data boolq/train.json --test-data boolq/test.json --train-rows 64 \
        --test-rows 24 --dtype float32 --output pipeline.json

Trains with DoRA and evaluates, by the commands a user would type: doratune's, in turn with those of
``reference.py``, which computes like the original study: stock PEFT in transformers' Trainer, then beam
search on the merged model, one row at a time. Shows time and memory of each command, and the share of rows
for which both give the same answer with the same adapter.
"""

from __future__ import annotations

import sys
from pathlib import Path

import tyro

sys.path[0] = str(
    Path(__file__).parents[1]
)  # the folder that holds this package; Python puts the package there

from doratune.cli.bench import Output, show
from doratune.cli.output import show_messages
from doratune.cli.parse import part
from doratune.errors import DoratuneError
from pipeline.bench import bench_pipeline
from pipeline.commands import PipelineBenchConfig
from pipeline.table import pipeline_renderable


class Command(Output, PipelineBenchConfig):
    """The flags."""


def main(argv: list[str]) -> int:
    """Measure, and show the record; bad input ends in exit code 2, as in doratune."""
    command = tyro.cli(Command, args=argv, prog="python benchmarks/pipeline", description=__doc__)
    show_messages()
    try:
        record = bench_pipeline(part(PipelineBenchConfig, command), overwrite=command.overwrite)
    except DoratuneError as error:
        print(f"pipeline: {error.message}", file=sys.stderr)
        return error.exit_code
    show(command, record, pipeline_renderable)
    return 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
