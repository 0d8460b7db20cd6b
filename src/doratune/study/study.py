"""A whole study: its plan in, its record out."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from doratune.errors import DoratuneError, InputError
from doratune.records.layout import STUDY_NAME, write_json_atomic
from doratune.records.study import StudyRecord
from doratune.study.assemble import Answered, answered_cells, study_record
from doratune.study.ray_cluster import RayRunner
from doratune.study.conduct import Runner, Watcher, check_folder, conduct
from doratune.study.config import StudyConfig
from doratune.study.grid import Group, groups_of
from doratune.study.local import LocalRunner
from doratune.study.material import Material, assumed_material, load_material
from doratune.study.plan import Plan, PlanTask, load_plan
from doratune.study.schedule import Progress


@dataclass(frozen=True)
class Study:
    """A plan with its rows.

    Attributes:
        plan: The plan.
        folder: The study's folder.
        groups: Its groups, in order.
        assumed: Why rows could not be loaded, by training set; their sizes are the plan's word then.
    """

    plan: Plan
    folder: Path
    groups: list[Group]
    assumed: dict[str, str]


def open_study(config: StudyConfig, *, only_to_estimate: bool = False) -> Study:
    """Read a plan and its rows; nothing is written.

    Args:
        config: The plan and the folder.
        only_to_estimate: Where the hub cannot be reached, go on with the sizes that the plan gives.

    Raises:
        InputError: The plan or its rows cannot be used, or the folder holds something else.
        DoratuneError: The hub cannot be reached.
    """
    plan = load_plan(config.plan)
    if config.data is not None:
        plan = plan.model_copy(update={"data": config.data})
    check_folder(config.output)
    assumed: dict[str, str] = {}

    def load(entry: PlanTask) -> Material:
        try:
            return load_material(plan, entry, config.output)
        except DoratuneError as error:
            if isinstance(error, InputError) or not only_to_estimate or entry.sizes is None:
                raise
            assumed[entry.train] = error.what
            return assumed_material(entry, config.output)

    materials = [load(entry) for entry in plan.tasks]
    return Study(plan, config.output, groups_of(plan, materials, config.output), assumed)


def run_study(study: Study, runner: Runner, watcher: Watcher, *, reproduce: str) -> StudyRecord:
    """Do what is left of a study; study.json is written anew whenever a group of its cells is finished.

    Args:
        study: What ``open_study`` gave.
        runner: What carries out its runs.
        watcher: What is told how it goes.
        reproduce: The command that gives this study.

    Returns:
        The record, as in study.json.

    Raises:
        InputError: What is on disk is not of this study, or another process is at work on it.
        DoratuneError: Runs have failed or were interrupted; what is finished is kept, and recorded.
    """
    finished: dict[int, list[Answered]] = {}

    def write() -> StudyRecord:
        answered = [one for group in study.groups for one in finished.get(id(group), [])]
        record = study_record(study.plan, study.groups, answered, reproduce=reproduce)
        write_json_atomic(study.folder / STUDY_NAME, record.to_dict())
        return record

    def note(progress: Progress) -> None:
        finished[id(progress.group)] = answered_cells(progress)
        write()

    if not (study.folder / STUDY_NAME).is_file():
        write()
    conduct(study.groups, study.folder, runner, watcher, note)
    return write()


def make_runner(plan: Plan, config: StudyConfig, initializer: Callable[[], None] | None = None) -> Runner:
    """The runner that a study is to be carried out with.

    Args:
        plan: Says what a run needs of a cluster.
        config: Names the runner.
        initializer: Called first in each run's process.

    Raises:
        InputError: What it needs is not installed, or a setting means nothing to it.
    """
    if config.runner == "ray":
        if config.jobs > 1 or config.threads is not None:
            raise InputError(
                "a Ray cluster decides itself how many runs go at a time",
                where="--jobs, --threads",
                expected="resources in the plan: what one run needs",
            )
        return RayRunner(plan.resources, initializer)
    threads = config.threads
    if threads is None and config.jobs > 1:
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        threads = max(cores // config.jobs, 1)
    return LocalRunner(config.jobs, threads, initializer)
