"""Shell completion of all verbs, written by tyro."""

from __future__ import annotations

import tyro

from doratune.cli.analyze import AnalyzeCommand
from doratune.cli.compare import CompareCommand
from doratune.cli.convert import ConvertCommand
from doratune.cli.env import EnvCommand
from doratune.cli.eval import EvalCommand
from doratune.cli.merge import MergeCommand
from doratune.cli.methods import MethodsCommand
from doratune.cli.models import ModelsCommand
from doratune.cli.presets import PresetsCommand
from doratune.cli.report import ReportCommand
from doratune.cli.study import StudyCommand
from doratune.cli.tasks import TasksCommand
from doratune.cli.train import TrainCommand
from doratune.settings import Settings

COMMANDS: dict[str, type[Settings]] = {
    "train": TrainCommand,
    "eval": EvalCommand,
    "compare": CompareCommand,
    "study": StudyCommand,
    "report": ReportCommand,
    "analyze": AnalyzeCommand,
    "merge": MergeCommand,
    "convert": ConvertCommand,
    "tasks": TasksCommand,
    "methods": MethodsCommand,
    "models": ModelsCommand,
    "presets": PresetsCommand,
    "env": EnvCommand,
}
"""The settings of each verb; ``run`` has a script's flags, and ``bench`` has subcommands."""


def complete(arguments: list[str]) -> None:
    """Print or write the completion script, as tyro's flags ask."""
    tyro.extras.subcommand_cli_from_dict({**COMMANDS}, prog="doratune", args=arguments)
