"""``doratune study``."""

from __future__ import annotations

from doratune.cli.parse import AsJson, command_line, parse, part
from doratune.study.config import StudyConfig

ABOUT = """Carry out a plan: models x methods x tasks x ranks x seeds. The learning rate of every method is
chosen on rows taken out of the training set; the test rows are answered once by each run that counts.

A folder given again is resumed: finished runs are kept, and what was added to the plan is done.

Examples:
  doratune study smollm2-three-tasks --output runs/study --dry-run
  doratune study smollm2-three-tasks --data dataset --output runs/study
  doratune study plan.yaml --output runs/study --jobs 2
"""


class StudyCommand(StudyConfig):
    """The flags of ``doratune study``."""

    dry_run: bool = False
    """Estimate what the study will take, and write nothing."""
    as_json: AsJson = False
    """Print the record, or with --dry-run the estimate, as JSON."""


def main(argv: list[str]) -> int:
    """Run the verb."""
    command = parse(StudyCommand, argv, verb="study", about=ABOUT)
    config = part(StudyConfig, command)

    from doratune.cli.output import configure_logging, show_messages
    from doratune.study.plan import load_plan
    from doratune.study.study import open_study

    show_messages()
    plan = load_plan(config.plan, data=config.data)
    study = open_study(plan, config.output, only_to_estimate=command.dry_run)
    if command.dry_run:
        from doratune.cli.estimate import show_estimate

        show_estimate(study, jobs=config.jobs, as_json=command.as_json)
        return 0

    from doratune.cli.progress import StudyProgress
    from doratune.cli.rendering import publish
    from doratune.study.study import make_runner, run_study

    runner = make_runner(plan.resources, config, configure_logging)
    with StudyProgress(study, jobs=config.jobs) as progress:
        record = run_study(study, runner, progress, reproduce=command_line("study", argv))
    publish(record, config.output, as_json=command.as_json)
    return 0
