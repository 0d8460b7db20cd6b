"""A whole study, from its plan to its record."""

from __future__ import annotations

import logging
import os
import shutil
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Literal

from doratune.errors import DoratuneError, InputError
from doratune.hub import offline
from doratune.records.archive import has_archive, restore_runs
from doratune.records.layout import RUNS_NAME, STUDY_NAME, has_run
from doratune.records.storage import read_study, write_study
from doratune.records.study import StudyRecord, arm_name, no_better_than_majority
from doratune.study.address import address, model_identity
from doratune.study.assemble import answered_cells, study_record
from doratune.study.cell import Answered
from doratune.study.conduct import Runner, Watcher, check_folder, conduct
from doratune.study.grid import Group, groups_of
from doratune.study.local import LocalRunner
from doratune.study.material import Material, assumed_material, load_material
from doratune.study.part import part_of, tested
from doratune.study.plan import Plan, PlanTask, Resources
from doratune.study.rates import Added
from doratune.study.ray_cluster import RayRunner
from doratune.study.schedule import Progress

logger = logging.getLogger(__name__)

NOT_HERE = "are not on this machine, and a dry run does not ask the hub"


@dataclass(frozen=True)
class Study:
    """A plan with its rows.

    Attributes:
        plan: The plan.
        folder: The study's folder.
        groups: Its groups, in order.
        inputs: The hashes that identify its models and rows, by description.
        assumed: Why rows were not loaded, by training set; the plan's sizes are used instead.
        left_out: Tasks of the plan that were not asked for.
    """

    plan: Plan
    folder: Path
    groups: list[Group]
    inputs: dict[str, str]
    assumed: dict[str, str]
    left_out: tuple[str, ...] = ()


def open_study(
    plan: Plan, folder: Path, *, only: Sequence[str] | None = None, only_to_estimate: bool = False
) -> Study:
    """Read the rows of a plan; nothing is written.

    Args:
        plan: The plan.
        folder: The study's folder.
        only: The test tasks to which the study is limited; None: all of the plan.
        only_to_estimate: Do not ask the hub; use the sizes in the plan for rows that are not on this machine.

    Raises:
        InputError: The rows or the folder cannot be used, or the plan does not test a task.
        DoratuneError: The hub cannot be reached, or the plan has no sizes for an estimate.
    """
    check_folder(folder)
    everything = tested(plan)
    if only is not None:
        plan = part_of(plan, only)
    left_out = tuple(name for name in everything if name not in tested(plan))
    assumed: dict[str, str] = {}

    def load(entry: PlanTask) -> Material:
        try:
            return load_material(plan, entry, folder)
        except DoratuneError as error:
            if isinstance(error, InputError) or not only_to_estimate:
                raise
            if entry.sizes is None:
                raise DoratuneError(
                    f"the rows of {entry.name} {NOT_HERE}",
                    where=f"tasks, {entry.name}",
                    fix="add sizes to the task in the plan, or name a folder with the rows: --data",
                ) from error
            assumed[entry.name] = NOT_HERE
            return assumed_material(plan, entry, folder)

    with offline() if only_to_estimate else nullcontext():
        materials = [load(entry) for entry in plan.tasks]
    identities = {name: model_identity(name) for name in plan.models}
    inputs = {_qualified("model", name, plan.models): one for name, one in identities.items()}
    for material in materials:
        names = [entry.name for entry in plan.tasks]
        for what, digest in material.inputs.items():
            inputs[_qualified(what, material.entry.name, names)] = digest
    for name, method in plan.own_methods.items():
        inputs[f"method {name}"] = address(method.deciding)
    groups = groups_of(plan, identities, materials, folder)
    for group in groups:
        group.check()
    if plan.own_methods:
        _refuse_misfits(plan, groups)
    return Study(plan, folder, groups, inputs, assumed, left_out)


def _refuse_misfits(plan: Plan, groups: Sequence[Group]) -> None:
    """Refuse own methods that PEFT does not take, or cannot put on a model, before anything is trained.

    A model that is not on this machine as a folder is not fetched for that: its runs tell.
    """
    from doratune.models.skeleton import skeleton
    from doratune.training.adapter import peft_config, refuse_misfit

    checked: set[str] = set()
    for config in (config for group in groups for config in group.configs()):
        own = plan.own_methods.get(config.method)
        settings = config.model_dump_json(include={"rank", "alpha", "dropout", "targets", "model", "method"})
        if own is None or settings in checked:
            continue
        checked.add(settings)
        model = skeleton(config.model, trust_remote_code=config.trust_remote_code)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the runs tell them
            if model is None:
                peft_config(own, config)
            else:
                refuse_misfit(model, own, config)


def run_study(
    study: Study, runner: Runner, watcher: Watcher, *, reproduce: str, again: str = "run the same command"
) -> StudyRecord:
    """Do what is left of a study; study.json is rewritten whenever a group of its cells is finished.

    Args:
        study: The result of ``open_study``.
        runner: Carries out its runs.
        watcher: Follows the progress.
        reproduce: The command that repeats this study.
        again: How the user resumes it, for messages.

    Returns:
        The record, as in study.json.

    Raises:
        InputError: Files on disk do not belong to this study, or another process is working on it.
        DoratuneError: Runs failed or were interrupted; finished runs are kept and recorded.
    """
    finished: dict[int, list[Answered]] = {}

    def write() -> StudyRecord:
        answered = [one for group in study.groups for one in finished.get(id(group), [])]
        record = study_record(
            study.plan,
            study.groups,
            study.inputs,
            answered,
            left_out=study.left_out,
            reproduce=reproduce,
        )
        write_study(study.folder, record)
        return record

    def note(progresses: list[Progress]) -> None:
        for progress in progresses:
            answered = finished[id(progress.group)] = answered_cells(progress)
            _warn_of_weak_choices(answered)
        write()  # once all can be read: an error leaves the record as it was

    if not (study.folder / STUDY_NAME).is_file():
        write()
    conduct(study.groups, study.folder, runner, watcher, note, again=again)
    return write()


def _warn_of_weak_choices(answered: Sequence[Answered]) -> None:
    """Warn of chosen rates that are no better than a constant answer; tests of one training share them."""
    for arm in answered[0].cell.arms if answered else []:
        if weak := no_better_than_majority(answered[0].cell, arm):
            logger.warning(
                "%s: the chosen learning rate of %s is no better than the most frequent answer on the "
                "validation rows (%s)",
                answered[0].cell.task,
                arm_name(arm.name),
                ", ".join(f"seed {one.seed}, rate {one.learning_rate:g}" for one in weak),
            )


@contextmanager
def with_archived_runs(study: Study) -> Iterator[Study]:
    """The study as it will be once the archive in its folder is restored; its folder is left as it is."""
    if not has_archive(study.folder):
        yield study
        return
    with TemporaryDirectory(prefix="doratune-") as scratch:
        folder = Path(scratch)
        restore_runs(study.folder, folder)
        for run in (study.folder / RUNS_NAME).glob("*"):
            if has_run(run):  # it comes before that of the archive
                shutil.rmtree(folder / RUNS_NAME / run.name, ignore_errors=True)
                (folder / RUNS_NAME / run.name).symlink_to(run.resolve())
        yield replace(study, folder=folder, groups=[replace(group, folder=folder) for group in study.groups])


def make_runner(
    resources: Resources,
    initializer: Callable[[], None],
    *,
    kind: Literal["local", "ray"],
    jobs: int,
    threads: int | None,
) -> Runner:
    """The runner for a study.

    Args:
        resources: What one run needs.
        initializer: Called first in each run's process.
        kind: This machine or a Ray cluster.
        jobs: Runs at a time on this machine.
        threads: Threads of each run, for all its processes; None: the cores divided among the jobs.

    Raises:
        InputError: Ray is not installed, or a setting does not apply to this kind of runner.
    """
    if kind == "ray":
        if jobs > 1 or threads is not None:
            raise InputError(
                "a Ray cluster decides by itself how many runs it does at a time",
                where="--jobs, --threads",
                expected="resources in the plan, which say what one run needs",
            )
        return RayRunner(resources, initializer)
    if threads is None and jobs * resources.of_a_run > 1:
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        threads = max(cores // jobs, 1)
    return LocalRunner(jobs, threads, initializer, processes=resources.of_a_run)


def refuse_lost_results(study: Study) -> None:
    """Refuse a study whose record would lack results that the record in its folder has.

    Raises:
        InputError: The folder's record has tasks or runs that are not among the study's, or cannot be read.
    """
    path = study.folder / STUDY_NAME
    if not path.is_file():
        return
    every = Added(study.plan.extension, study.plan.extension)
    known = {
        group.test(method, rate, seed).folder.name
        for group in study.groups
        for method in study.plan.methods
        for rate in group.rates(method, every)
        for seed in group.seeds
    }
    tasks = tested(study.plan)
    record = read_study(path)
    lost = [
        f"{cell.task}, {arm_name(arm.name)}, seed {run.seed}"
        + (f", protocol {cell.protocol}" if cell.protocol != study.plan.protocol else "")
        for cell in record.cells
        for arm in cell.arms
        for run in arm.runs
        if cell.task.lower() not in tasks
        or cell.protocol != study.plan.protocol
        or Path(run.run).name not in known
    ]
    shown = {
        (group.material.entry.name, test.task.name.lower())
        for group in study.groups
        for test in (*group.material.also, *group.material.tests)
    }
    lost += [
        f"{one.about}, as what is kept after training on {one.trained_on}"
        for one in record.forgetting
        if one.measure != "nll_per_token" and (one.trained_on, one.about.lower()) not in shown
    ]
    if lost:
        raise InputError(
            "the folder's record has results that this study would not have, and would be replaced",
            where=str(path),
            got=f"{lost[0]}{f', and {len(lost) - 1} more' if len(lost) > 1 else ''}",
            fix="name its tasks under --only too, or choose another --output"
            if study.left_out
            else "choose another --output, or add to the plan that the record is of; to give the record up, "
            "delete study.json (the runs are kept)",
        )


def _qualified(what: str, name: str, names: Sequence[str]) -> str:
    """``what``, with its name if there are several."""
    return what if len(names) == 1 else f"{name}: {what}"
