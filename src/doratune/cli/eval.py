"""``doratune eval``."""

from __future__ import annotations

from typing import Literal

from doratune.cli.imports import lasting_imports
from doratune.cli.parse import AsJson, parse, part, peek
from doratune.errors import InputError
from doratune.evaluation.config import EvalConfig
from doratune.evaluation.early import refuse_early
from doratune.launch import first_process_speaks, launched, refuse_several

ABOUT = """Evaluate a run directory, an adapter folder or a base model.

Examples:
  doratune eval finetuned_result/dora_r32 --task boolq
  doratune eval finetuned_result/dora_r32 --task boolq --data boolq/test.json --protocol generate
  doratune eval smollm2-135m --task sample-boolq sample-winogrande --format continuation
  doratune eval finetuned_result/dora_r32 --text
  doratune eval path/to/peft_adapter --task hellaswag --eval-rows 500 --output runs/adapter
  doratune eval finetuned_result/dora_r32 --harness lm-eval --task arc_easy piqa my_task.yaml
  torchrun --nproc-per-node 8 -m doratune eval runs/llama --task commonsense-mix
"""
FIRST = ("target", "task", "data", "eval_rows", "output")


class EvalCommand(EvalConfig):
    """The flags of ``doratune eval``."""

    harness: Literal["lm-eval"] | None = None
    """lm-eval: run lm-evaluation-harness's tasks, by name or YAML file; None: doratune's tasks."""
    overwrite: bool = False
    """Replace evaluations that are already there."""
    as_json: AsJson = False
    """Print the record as JSON."""


def main(argv: list[str]) -> int:
    """Run the verb."""
    with first_process_speaks():
        command = parse(EvalCommand, argv, verb="eval", about=ABOUT, first=FIRST)
    config = part(EvalConfig, command)

    if command.harness is not None:
        refuse_several("lm-eval evaluates in one process here", where="--harness lm-eval")
        return _run_harness(config, argv, overwrite=command.overwrite, as_json=command.as_json)

    if launched().processes == 1:  # several refuse together, once they have met
        refuse_early(config)
    with lasting_imports():
        from doratune.cli.output import configure_logging, new_console, print_json
        from doratune.evaluation.evaluate import evaluate
        from doratune.report.terminal import print_evaluations

    configure_logging()
    record = evaluate(config, overwrite=command.overwrite)
    if not launched().speaks:
        return 0
    if command.as_json:
        print_json(record.to_dict())
    else:
        print_evaluations(record, new_console())
    return 0


def _run_harness(config: EvalConfig, argv: list[str], *, overwrite: bool, as_json: bool) -> int:
    ours = [f"--{flag}" for flag, value in peek(argv, "data", "format", "protocol").items() if value]
    ours += ["--text"] if config.text else []  # a flag without a value
    if ours:
        raise InputError(
            "lm-eval's tasks bring their own rows, prompts and scores",
            where=f"--harness lm-eval {' '.join(ours)}",
            fix=f"leave out {' and '.join(ours)}, or --harness",
        )

    with lasting_imports():
        from doratune.cli.output import configure_logging, print_json
        from doratune.evaluation.harness import evaluate_with_lm_eval, results_table

    configure_logging()
    results = evaluate_with_lm_eval(config, overwrite=overwrite)
    if as_json:
        print_json(results)
    else:
        print("\n".join(map(results_table, results.values())))
    return 0
