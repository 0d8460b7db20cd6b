"""Whether a study's record says what its runs answered: its results are computed from the answers again.

What the plan decides, such as which rates are tried and whose rate is chosen, is taken from the record.
"""

from __future__ import annotations

import math
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from doratune import __version__
from doratune.errors import InputError
from doratune.records.answers import read_answers
from doratune.records.archive import PREDICTIONS_FILE, RUNS_FILE, restore_runs
from doratune.records.base import Record
from doratune.records.base_model import compare_base_models
from doratune.records.differences import arm_key
from doratune.records.layout import (
    RUNS_NAME,
    STUDY_NAME,
    VALIDATION_NAME,
    has_diverged,
    is_recorded,
    runs_of_study,
)
from doratune.records.run import Evaluation
from doratune.records.storage import read_divergence, read_record
from doratune.records.study import (
    DivergedRun,
    Forgetting,
    SameRate,
    StudyArm,
    StudyCell,
    StudyRecord,
    Trial,
)
from doratune.stats.measures import right_answer_nll
from doratune.study.assemble import record_of
from doratune.study.cell import Answered, Arm, AtOneRate, Run, cell_of
from doratune.study.families import axes_of
from doratune.study.forgetting import kept_of_task, kept_of_text

FROM_PLAN = (
    "model",
    "rank",
    "batch_size",
    "epochs",
    "training_rows",
    "train",
    "validation",
    "test",
    "note",
    "chosen_per",
    "extended",
    "validation_majority",
)
"""A cell's fields that are not computed from answers."""
WORDS = ("verdict", "tells_nothing")
"""Fields that tell a result in words; the figures they follow from are fields too."""
_TOLERANCE = 1e-6  # another processor rounds differently


@dataclass(frozen=True)
class _Difference:
    """A value of the record that is not the one computed again."""

    place: str
    said: Any
    found: Any


def check_against_archive(record: StudyRecord, folder: Path) -> None:
    """Refuse a study.json whose results are not those of the archived answers.

    Args:
        record: The study.json.
        folder: Holds the archive.

    Raises:
        InputError: A part of the archive is missing or damaged, or a result differs.
    """
    _refuse_half(folder)
    with tempfile.TemporaryDirectory(prefix="doratune-") as scratch:
        restore_runs(folder, Path(scratch))
        try:
            refuse_differences(record, computed_again(record, Path(scratch)))
        except InputError as error:
            raise InputError(
                error.what,
                where=f"{folder}: {(error.where or '').replace(f'{scratch}/', '')}",
                got=error.got,
                expected=error.expected,
                fix=_to_do(folder),
            ) from None


def check_against_runs(record: StudyRecord, study: Path) -> None:
    """Refuse a study.json whose results are not those of the runs in its folder.

    Raises:
        InputError: A run that the record names is missing or damaged, or a result differs.
    """
    try:
        refuse_differences(record, computed_again(record, study))
    except InputError as error:
        raise InputError(
            error.what,
            where=f"{study}: {error.where}",
            got=error.got,
            expected=error.expected,
            fix=f"repeat the command that wrote {study}, which computes {STUDY_NAME} again from the runs",
        ) from None


def refuse_differences(said: StudyRecord, found: StudyRecord) -> None:
    """Refuse a record with other results than those computed again; the message names the first.

    Sentences and fields without a value are compared only if this version wrote the record: another may word
    them differently, and an older one did not know every field.

    Raises:
        InputError: A result differs.
    """
    ours = said.environment.doratune == __version__
    differing = [
        one
        for name in ("cells", "pooled", "forgetting")
        for one in _differing(getattr(said, name), getattr(found, name), name, every_field=ours)
    ]
    if not ours:
        differing = [one for one in differing if one.place.rpartition(".")[2] not in WORDS]
    if differing:
        first = differing[0]
        more = f", and {len(differing) - 1} more that differ" if len(differing) > 1 else ""
        raise InputError(
            "the study's results are not those of its answers",
            where=f"{STUDY_NAME}, {first.place}{more}",
            got=f"{first.said}",
            expected=f"{first.found}",
        )


def _refuse_half(folder: Path) -> None:
    files = [folder / name for name in (RUNS_FILE, PREDICTIONS_FILE)]
    for file in files:
        if not file.is_file():
            raise InputError(
                "a part of the study's archive is missing",
                where=str(file),
                fix="copy both files of the archive from where it was written",
            )


def _to_do(folder: Path) -> str:
    if (folder / RUNS_NAME).is_dir():
        return f"doratune report {folder} --output {folder} --archive"
    return (
        f"copy {STUDY_NAME}, {RUNS_FILE} and {PREDICTIONS_FILE} again from where they were written together; "
        f"or repeat its `doratune study` with --output {folder}, which computes {STUDY_NAME} from the archive"
    )


def computed_again(record: StudyRecord, study: Path) -> StudyRecord:
    """The results of a record's cells, computed from the answers of its runs.

    Args:
        record: Says which runs belong to which cell.
        study: The folder with the runs.

    Raises:
        InputError: A run that the record names is missing or damaged.
    """
    found = [one for one in runs_of_study(study) if is_recorded(one)]
    places = {one: one.relative_to(study).as_posix() for one in found}
    runs = {place: Run(one, place, read_record(one)) for one, place in places.items()}
    answered = [_answered(cell, runs, study) for cell in record.cells]
    forgetting = [_forgetting(one, record.cells, runs) for one in record.forgetting]
    return record_of(answered, title="", reproduce="", forgetting=forgetting)


def _answered(cell: StudyCell, runs: Mapping[str, Run], study: Path) -> Answered:
    arms = [
        replace(_arm(arm, cell, runs), trials=[_trial(one, cell, runs, study) for one in arm.trials])
        for arm in cell.arms
    ]
    entries = [entry for arm in arms for _, entry in arm.runs]
    base = _base(cell, runs, entries) if cell.base is not None else None
    facts = {name: getattr(cell, name) for name in FROM_PLAN}
    facts["diverged"] = [_diverged(one, study) for one in cell.diverged]
    at_one_rate = [_at_one_rate(one, cell, arms, runs) for one in cell.same_rate]
    if base is None and not entries:
        raise InputError("a cell has no results", where=f"{STUDY_NAME}, {cell.task} ({cell.format})")
    return cell_of(facts, base[1] if base else entries[0], base, arms, at_one_rate)


def _arm(arm: StudyArm, cell: StudyCell, runs: Mapping[str, Run]) -> Arm:
    return Arm(arm.name, arm.method, [_evaluated(one.run, cell, runs) for one in arm.runs])


def _evaluated(place: str, cell: StudyCell, runs: Mapping[str, Run]) -> tuple[Run, Evaluation]:
    """A run with its answers to the cell's test rows."""
    found = _entry(runs[place], cell.task, cell) if place in runs else None
    if found is None:
        raise InputError(
            "the answers of a run of the study are missing",
            where=place,
            expected=f"its answers to {cell.task} ({cell.format})",
        )
    return runs[place], found


def _entry(run: Run, task: str, cell: StudyCell) -> Evaluation | None:
    """A run's answers to the test rows of a task, asked as in the cell."""
    asked = (task, cell.format, cell.protocol, "test")
    for one in run.record.evaluations:
        if (one.task, one.format, one.protocol, one.data.split) == asked:
            return one
    return None


def _bases(
    task: str, cell: StudyCell, runs: Mapping[str, Run], trained: Iterable[Evaluation]
) -> list[tuple[Run, Evaluation]]:
    """The runs of the base model that answered the same rows; several if the plan was changed."""
    rows = {(one.data.asked, one.limit) for one in trained}
    models = [runs[one.run].record.model for arm in cell.arms[:1] for one in arm.runs[:1]]
    return [
        (run, entry)
        for run in runs.values()
        if run.record.method == "base"
        and (entry := _entry(run, task, cell)) is not None
        and (not rows or (entry.data.asked, entry.limit) in rows)
        and all(compare_base_models(run.record.model, one).same for one in models)
    ]


def _base(cell: StudyCell, runs: Mapping[str, Run], trained: Sequence[Evaluation]) -> tuple[Run, Evaluation]:
    found = _bases(cell.task, cell, runs, trained)
    if not found:
        raise InputError("the answers of the base model are missing", where=f"{cell.task} ({cell.format})")
    named = {place for places in cell.alike for place in places}
    right = cell.base.correct if cell.base else None
    return min(
        found,
        key=lambda one: (one[0].place not in named, read_answers(one[0].directory, one[1]).right != right),
    )


def _trial(one: Trial, cell: StudyCell, runs: Mapping[str, Run], study: Path) -> Trial:
    """A trial with its result on the validation rows."""
    if has_diverged(study / one.run):
        return one.model_copy(update={"accuracy": None, "nll": None})
    run = runs.get(f"{one.run}/{VALIDATION_NAME}")
    asked = (cell.format, cell.protocol)
    entries = [one for one in run.record.evaluations if (one.format, one.protocol) == asked] if run else []
    if run is None or not entries:
        raise InputError("the answers of a trial are missing", where=f"{one.run}/{VALIDATION_NAME}")
    answers = [read_answers(run.directory, entry) for entry in entries]
    rows = sum(len(found.rows) for found in answers)
    scored = [list(found.scored.values()) for found in answers if found.scored]
    likelihoods = [value for of_task in scored for value in right_answer_nll(of_task).tolist()]
    return one.model_copy(
        update={
            "accuracy": math.fsum(found.total for found in answers) / rows,
            "nll": math.fsum(likelihoods) / rows if len(scored) == len(answers) else None,
            "rows": rows,
        }
    )


def _diverged(one: DivergedRun, study: Path) -> DivergedRun:
    found = read_divergence(study / one.run)
    return one.model_copy(
        update={
            "learning_rate": found.config.get("learning_rate"),
            "seed": found.config.get("seed"),
            "seconds": found.seconds,
            "message": found.message,
        }
    )


def _at_one_rate(one: SameRate, cell: StudyCell, arms: Sequence[Arm], runs: Mapping[str, Run]) -> AtOneRate:
    """The two arms with their runs at the rate, for the seeds of the difference."""
    seeds = {seed.seed for seed in one.difference.seeds}
    by_name = {arm.name: arm for arm in arms}

    def at_rate(name: str) -> Arm:
        arm = by_name[name]
        ours = arm.runs[0][0].record
        shared = arm_key(ours, besides={"learning_rate"})
        found = {
            run.record.seed: (run, entry)
            for run in runs.values()
            if run.record.method != "base"
            and run.record.config.get("learning_rate") == one.learning_rate
            and run.record.seed in seeds
            and (entry := _entry(run, cell.task, cell)) is not None
            and arm_key(run.record, besides={"learning_rate"}) == shared
            and compare_base_models(run.record.model, ours.model).same
        }
        return Arm(arm.name, arm.method, [found[seed] for seed in sorted(found)])

    missing = {one.difference.from_arm, one.difference.to_arm} - by_name.keys()
    if missing:
        raise InputError("an arm that is compared has no runs", where=STUDY_NAME, got=", ".join(missing))
    return AtOneRate(one.learning_rate, at_rate(one.difference.from_arm), at_rate(one.difference.to_arm))


def _forgetting(said: Forgetting, cells: Sequence[StudyCell], runs: Mapping[str, Run]) -> Forgetting:
    """The same measure, computed again for the training that the entry is about.

    Trainings may be alike in all that the entry names. Then it is the first whose values are the entry's, or
    the first.
    """
    first = None
    axes = (said.rank, said.batch_size, said.epochs, said.training_rows)
    for cell in cells:
        if (cell.model, cell.format, axes_of(cell)) != (said.model, said.format, axes):
            continue
        for found in _kept(said, cell, runs):
            if found.measure != said.measure:
                continue
            if not any(_differing(said, found, "")):
                return found
            first = first or found
    if first is None:
        raise InputError(
            "the answers are missing that show what the runs keep",
            where=f"{said.about}, trained on {said.trained_on}",
        )
    return first


def _kept(said: Forgetting, cell: StudyCell, runs: Mapping[str, Run]) -> Iterator[Forgetting]:
    fields = ("model", "trained_on", "format", "rank", "batch_size", "epochs", "training_rows")
    facts = {name: getattr(said, name) for name in fields}
    if said.measure == "nll_per_token":
        arms = [_arm(arm, cell, runs) for arm in cell.arms]
        trained = [entry for arm in arms for _, entry in arm.runs]
        bases: list[Run | None] = [run for run, _ in _bases(cell.task, cell, runs, trained)]
        for base in bases if said.base is not None else [None]:
            yield from kept_of_text(facts, base, arms)
        return
    arms = []
    for arm in cell.arms:
        entries = [(runs[one.run], _entry(runs[one.run], said.about, cell)) for one in arm.runs]
        whole = [(run, entry) for run, entry in entries if entry is not None]
        if len(whole) < len(entries):
            return
        arms.append(Arm(arm.name, arm.method, whole))
    trained = [entry for arm in arms for _, entry in arm.runs]
    for base in _bases(said.about, cell, runs, trained):
        yield from kept_of_task(facts, base, arms)


def _differing(said: Any, found: Any, place: str, *, every_field: bool = False) -> Iterator[_Difference]:
    """The values that differ; without every_field, a field that has its default is not compared."""

    def within(ours: Any, theirs: Any, key: object) -> Iterator[_Difference]:
        return _differing(ours, theirs, f"{place}.{key}", every_field=every_field)

    if isinstance(said, Record) and type(said) is type(found):
        for name, field in type(said).model_fields.items():
            ours = getattr(said, name)
            if every_field or field.is_required() or ours != field.default:
                yield from within(ours, getattr(found, name), name)
    elif isinstance(said, Mapping) and isinstance(found, Mapping) and said.keys() == found.keys():
        for key in said:
            yield from within(said[key], found[key], key)
    elif isinstance(said, list | tuple) and isinstance(found, list | tuple):
        if len(said) != len(found):
            yield _Difference(place, f"{len(said)} entries", f"{len(found)} entries")
        for number, (ours, theirs) in enumerate(zip(said, found, strict=False)):
            yield from within(ours, theirs, number)
    elif not _same(said, found):
        yield _Difference(place, said, found)


def _same(said: Any, found: Any) -> bool:
    numbers = (int, float)
    if isinstance(said, numbers) and isinstance(found, numbers) and not isinstance(said, bool):
        return math.isclose(said, found, rel_tol=_TOLERANCE, abs_tol=1e-9)
    return bool(said == found)
