"""``doratune bench``."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

from doratune.bench.config import InferBenchConfig, OpBenchConfig, StepBenchConfig
from doratune.cli.parse import AsJson, parse, part
from doratune.errors import InputError, did_you_mean
from doratune.records.base import Record
from doratune.settings import LaxPath, Settings

Shown = TypeVar("Shown", bound=Record)

ABOUT = """usage: doratune bench WHAT [options]      (doratune bench WHAT --help shows its options)

Measure what DoRA and LoRA cost compared with PEFT's, after checking that their results agree.

what:
  op     single layers: the time of forward and backward, what is saved for backward, peak memory
  step   whole optimizer steps of fine-tuning a model: time and peak memory
  infer  generation with an adapter that is not merged: tokens per second and the memory that is kept

Examples:
  doratune bench op
  doratune bench step --output bench-step.json
  doratune bench op --set cpu --case 4096x4096-r32-t2048 --rounds 30 --threads 2
"""

ABOUT_OP = """Check every provider against the float64 reference, then time all of them in turn: the frozen
layer, PEFT's LoRA and DoRA, doratune's LoRA, and its DoRA: with the norm cached, with the norm computed
again, and where no later operation saves the output.

Examples:
  doratune bench op
  doratune bench op --set cpu --case 4096x4096-r32-t2048 4096x4096-r32-t512 --threads 2
  doratune bench op --set gpu --output bench-op.json
  doratune bench op --set cpu --case 576x1536-r16-t1024 --rounds 30 --no-memory --json
"""

ABOUT_STEP = """Train a model on one batch with every provider: the frozen model alone, stock TRL with PEFT's
LoRA and DoRA, and doratune's LoRA and DoRA. Each runs its loop in a separate process. They take turns
step by step, and providers that train the same parameters must have the same losses.

Examples:
  doratune bench step
  doratune bench step --case 16x64-r32 --rounds 15 --threads 2
  doratune bench step --dtype float32 --threads 2
  doratune bench step --set growth --output bench-growth.json
  doratune bench step --set all --model path/to/model --json
"""

ABOUT_INFER = """Generate greedily with every provider: the base model, the DoRA adapter merged, PEFT's LoRA
and DoRA, PEFT's DoRA with its cache, and doratune's LoRA and DoRA. They take turns call by call. First the
logits of each are compared with those of stock PEFT with the same adapter.

Examples:
  doratune bench infer
  doratune bench infer --case batch1-fp32 --rounds 15 --threads 2
  doratune bench infer --dtype bfloat16 --output bench-infer.json
"""


class Output(Settings):
    """The flags that every bench has for its record."""

    output: LaxPath | None = None
    """JSON file for the record; None: not written."""
    overwrite: bool = False
    """Replace the output file."""
    as_json: AsJson = False
    """Print the record as JSON."""


class OpCommand(Output, OpBenchConfig):
    """The flags of ``doratune bench op``."""


class StepCommand(Output, StepBenchConfig):
    """The flags of ``doratune bench step``."""


class InferCommand(Output, InferBenchConfig):
    """The flags of ``doratune bench infer``."""


def main(argv: list[str]) -> int:
    """Run the verb."""
    if not argv or argv[0] in ("-h", "--help"):
        print(ABOUT, end="")
        return 0
    if argv[0] not in KINDS:
        raise InputError(
            "unknown bench",
            got=argv[0],
            expected=f"one of {', '.join(KINDS)}",
            fix=did_you_mean(argv[0], KINDS, form="doratune bench {}") or "see doratune bench --help",
        )
    return KINDS[argv[0]](argv[1:])


def _op(argv: list[str]) -> int:
    command = parse(OpCommand, argv, verb="bench op", about=ABOUT_OP)
    config = part(OpBenchConfig, command)

    from doratune.bench.op.bench import bench_op
    from doratune.bench.table import bench_renderable
    from doratune.cli.output import configure_logging

    configure_logging()
    record = bench_op(config, overwrite=command.overwrite)
    show(command, record, bench_renderable)
    return 0


def _step(argv: list[str]) -> int:
    command = parse(StepCommand, argv, verb="bench step", about=ABOUT_STEP)
    config = part(StepBenchConfig, command)

    from doratune.bench.step.bench import bench_step
    from doratune.bench.table import step_renderable
    from doratune.cli.output import configure_logging

    configure_logging()
    record = bench_step(config, overwrite=command.overwrite)
    show(command, record, step_renderable)
    return 0


def _infer(argv: list[str]) -> int:
    command = parse(InferCommand, argv, verb="bench infer", about=ABOUT_INFER)
    config = part(InferBenchConfig, command)

    from doratune.bench.infer.bench import bench_infer
    from doratune.bench.table import infer_renderable
    from doratune.cli.output import configure_logging

    configure_logging()
    record = bench_infer(config, overwrite=command.overwrite)
    show(command, record, infer_renderable)
    return 0


def show(command: Output, record: Shown, renderable: Callable[[Shown], Any]) -> None:
    """Print a bench's record, as JSON or as a table."""
    from doratune.cli.output import new_console, print_json, print_paths

    if command.as_json:
        print_json(record.to_dict())
        return
    console = new_console()
    console.print(renderable(record))
    if command.output is not None:
        print_paths([command.output], console)


KINDS: dict[str, Callable[[list[str]], int]] = {"op": _op, "step": _step, "infer": _infer}
