"""``doratune study``."""

from __future__ import annotations

from typing import Annotated, Literal

from tyro.conf import Positional

from doratune.cli.parse import AsJson, command_line, parse
from doratune.settings import LaxPath, Positive, Settings

ABOUT = """Carry out a plan: models x methods x tasks x ranks x rates x seeds. Every seed of a method chooses
its learning rate on rows held out of the training set; then the run with that rate answers the test rows.
While the best rate is at an end of the list, a rate beyond it is tried with every method, up to a limit.

The same --output resumes a study: finished runs are kept, and what was added to the plan is run.

Examples:
  doratune study smollm2-four-tasks --output runs/study --dry-run
  doratune study smollm2-four-tasks --data dataset --output runs/study
  doratune study smollm2-four-tasks --only boolq winogrande --output runs/two-tasks
  doratune study plan.yaml --output runs/study --jobs 2
"""


class StudyCommand(Settings):
    """The flags of ``doratune study``; only the plan and its data change a result."""

    plan: Annotated[str, Positional]
    """Name of a shipped plan, or a YAML file."""
    output: LaxPath
    """Folder of the study; one that holds runs of the plan is resumed."""
    data: LaxPath | None = None
    """Folder with <task>/train.json and <task>/test.json, instead of the hub; overrides the plan's."""
    only: list[str] | None = None
    """Run only these test tasks, and the training that they need; None: all of the plan."""
    runner: Literal["local", "ray"] = "local"
    """local: this machine; ray: a Ray cluster whose machines share the output folder."""
    jobs: Positive = 1
    """Runs at a time on this machine."""
    threads: Positive | None = None
    """Threads of each run, for all its processes; None: the cores divided among the jobs."""
    dry_run: bool = False
    """Estimate the study's steps, tokens and time. Writes nothing and does not ask the hub."""
    as_json: AsJson = False
    """Print the record, or with --dry-run the estimate, as JSON."""


def main(argv: list[str]) -> int:
    """Run the verb."""
    command = parse(StudyCommand, argv, verb="study", about=ABOUT)

    from doratune.cli.output import configure_logging, show_messages
    from doratune.study.plan_file import load_plan
    from doratune.study.study import open_study, refuse_lost_results

    show_messages()
    plan = load_plan(command.plan, data=command.data)
    study = open_study(plan, command.output, only=command.only, only_to_estimate=command.dry_run)
    refuse_lost_results(study)
    if command.dry_run:
        from doratune.cli.estimate import show_estimate

        show_estimate(study, jobs=command.jobs, as_json=command.as_json)
        return 0

    from doratune.cli.progress import StudyProgress
    from doratune.cli.rendering import publish
    from doratune.study.study import make_runner, run_study

    runner = make_runner(
        plan.resources,
        configure_logging,
        kind=command.runner,
        jobs=command.jobs,
        threads=command.threads,
    )
    with StudyProgress(study, jobs=command.jobs) as progress:
        record = run_study(study, runner, progress, reproduce=command_line("study", argv))
    publish(record, command.output, as_json=command.as_json)
    return 0
