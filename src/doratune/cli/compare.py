"""``doratune compare``."""

from __future__ import annotations

from doratune.cli.parse import AsJson, PresetName, command_line, parse, peek
from doratune.methods.find import plain_name
from doratune.records.study import StudyMethod
from doratune.settings import validate
from doratune.study import compare
from doratune.study.compare import CompareConfig
from doratune.training.presets import Preset, load_preset

ABOUT = """Evaluate a base model, train it with LoRA, DoRA or other methods on the same rows, order, seeds and
budget, evaluate each, and write study.json, report.md and report.html. Several tasks are mixed into one
training set.

Of several --learning-rates, every seed of a method trains with each, and the best on held-out rows answers
the test rows. While the best is at an end of the list, up to two rates beyond that end are tried too, with
every method. Choosing costs rates x seeds trainings for each method; --dry-run counts them.

Examples:
  doratune compare --preset demo --output runs/demo
  doratune compare --task arc-easy --format continuation --epochs 1 --seeds 0 1 2
                   --learning-rates 3e-4 1e-3 --output runs/arc-easy
  doratune compare --task boolq --data boolq/train.json --test-data boolq/test.json --rows 2000
                   --epochs 1 --output runs/boolq
  doratune compare --methods lora pissa vera --task arc-easy --format continuation --output runs/three
"""
FIRST = ("model", "task", "data", "test_data", "output")


class CompareCommand(CompareConfig):
    """The flags of ``doratune compare``."""

    preset: PresetName = None
    resume: bool = False
    """Continue the comparison in the output folder; seeds, learning rates and tasks may be added."""
    overwrite: bool = False
    """Replace the comparison in the output folder."""
    dry_run: bool = False
    """Estimate the comparison's steps, tokens and time. Writes nothing and does not ask the hub."""
    as_json: AsJson = False
    """Print the record, or with --dry-run the estimate, as JSON."""


def main(argv: list[str]) -> int:
    """Run the verb."""
    known = peek(argv, "preset")
    preset = load_preset(known["preset"]) if known["preset"] else Preset()
    shared = {**preset.settings, **preset.compare}
    command = _parse(argv, shared, preset.source)
    own: dict[StudyMethod, CompareConfig] = {
        method: _parse(argv, {**shared, **preset.methods[method]}, f"{preset.source}, methods.{method}")
        for method in map(plain_name, command.methods)
        if method in preset.methods
    }

    from doratune.cli.output import configure_logging, show_messages
    from doratune.cli.progress import StudyProgress
    from doratune.cli.rendering import publish
    from doratune.study.local import LocalRunner
    from doratune.study.study import open_study, run_study

    show_messages()
    plan = compare.comparison_plan(command, own)
    compare.check_output(command.output, resume=command.resume, overwrite=command.overwrite)
    earlier = compare.read_earlier(command.output) if command.resume else None
    study = open_study(plan, command.output, only_to_estimate=command.dry_run)
    if earlier is not None:
        compare.check_same(study, earlier)
    if command.dry_run:
        from doratune.cli.estimate import show_estimate

        show_estimate(study, jobs=1, as_json=command.as_json)
        return 0
    if command.overwrite:
        compare.remove_comparison(command.output)
    with StudyProgress(study, jobs=1) as progress:
        record = run_study(
            study,
            LocalRunner(1, None, configure_logging),
            progress,
            reproduce=command_line("compare", argv, without=("--json", "--resume", "--overwrite")),
            again="run the same command with --resume",
        )
    publish(record, command.output, as_json=command.as_json)
    return 0


def _parse(argv: list[str], defaults: dict[str, object], source: str) -> CompareCommand:
    validate(CompareConfig, {"output": "-", **defaults}, where=source)
    return parse(CompareCommand, argv, verb="compare", about=ABOUT, first=FIRST, defaults=defaults)
