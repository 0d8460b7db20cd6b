"""A study's names, groups and contents as a report needs them, computed once."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Hashable, Iterable, Sequence
from dataclasses import dataclass
from itertools import count

from doratune.methods.find import method_names
from doratune.records.study import (
    NO_VERDICT,
    PooledDifference,
    StudyArm,
    StudyCell,
    StudyDifference,
    StudyMethod,
    StudyRecord,
    arm_name,
)
from doratune.report import numbers
from doratune.wording import listed

METHOD_SERIES: dict[StudyMethod, int] = {"lora": 1, "dora": 2, "dora-attached-norm": 3, "full": 4}
"""The colour and marker of methods that have the same ones in every report; 0 is the base model's."""


@dataclass(frozen=True)
class NamedCell:
    """A cell of the study and its name."""

    label: str
    cell: StudyCell

    def arm(self, name: str) -> StudyArm | None:
        """The arm of that name, or None."""
        return next((arm for arm in self.cell.arms if arm.name == name), None)


@dataclass(frozen=True)
class NamedDifference:
    """A difference between two arms on one cell, or pooled over several cells.

    Attributes:
        key: Identifies the cell or pool in every pair.
        label: The name of the cell or of the pool.
        cell: Its cell; None for a pooled difference.
        difference: The figures.
        with_nothing: For a pooled difference, how many of its cells have no verdict.
    """

    key: Hashable
    label: str
    cell: StudyCell | None
    difference: StudyDifference
    with_nothing: int = 0

    @property
    def sample(self) -> bool:
        """Whether it was measured on a built-in sample, which is not a benchmark."""
        return self.cell is not None and self.cell.sample

    @property
    def arms(self) -> list[StudyArm]:
        """The two arms on its cell, ``to`` first; none for a pooled difference."""
        by_name = {arm.name: arm for arm in self.cell.arms} if self.cell else {}
        names = (self.difference.to_arm, self.difference.from_arm)
        return [by_name[name] for name in names if name in by_name]

    @property
    def tells_nothing(self) -> bool:
        """Whether it has no verdict, because neither arm is shown to have learned anything."""
        return self.difference.outcome == NO_VERDICT


@dataclass(frozen=True)
class Pair:
    """Two compared arms: their names, and their differences on single cells and pooled."""

    from_arm: str
    to_arm: str
    single: list[NamedDifference]
    pooled: list[NamedDifference]

    @property
    def name(self) -> str:
        """As a difference: "DoRA − LoRA"."""
        return f"{arm_title(self.to_arm)} {numbers.MINUS} {arm_name(self.from_arm)}"

    @property
    def corrected(self) -> bool:
        """Whether the correction over the tasks has changed a p."""
        return any(one.difference.p_adjusted != one.difference.p_value for one in self.single)

    @property
    def together(self) -> bool:
        """Whether several of its cells have one model and one rank, batch size and so on."""
        places = Counter((one.cell.model, axis_words(one.cell)) for one in self.single if one.cell)
        return any(count > 1 for count in places.values())

    @property
    def all(self) -> list[NamedDifference]:
        """The differences on single cells, then the pooled ones."""
        return [*self.single, *self.pooled]


@dataclass(frozen=True)
class Training:
    """The arms of one cell, or of several cells whose results come from the same runs."""

    label: str  #: the names of the cells; empty where the study has only one training
    arms: list[StudyArm]

    def of_method(self, method: StudyMethod) -> StudyArm | None:
        """The first arm of that method, or None."""
        return next((arm for arm in self.arms if arm.method == method), None)


@dataclass(frozen=True)
class View:
    """A record, and facts that several parts of its report need.

    Attributes:
        record: The record.
        cells: Its finished cells, in the plan's order.
        arms: Names of all arms, in the plan's order.
        series: By arm, its colour and marker, as the index of ``colour`` and ``marker``.
        pairs: The compared arms.
        trainings: The trainings, each run once.
        noun: The reader's word for a cell: "task" if no task is there twice.
        seeds: How many seeds the arms ran with: "3 seeds", or "1 to 3 seeds" if they differ.
        one_seed: Whether every arm ran with one seed.
        searched: Whether any learning rate was searched for.
        has_base: Whether the model was evaluated before training.
        simple: Whether a short page is enough: one pair at most, one seed, one model, no search.
    """

    record: StudyRecord
    cells: list[NamedCell]
    arms: list[str]
    series: dict[str, int]
    pairs: list[Pair]
    trainings: list[Training]
    noun: str
    seeds: str
    one_seed: bool
    searched: bool
    has_base: bool
    simple: bool

    @property
    def rates_differ(self) -> bool:
        """Whether the arms were trained with different learning rates."""
        return len({rate for one in self.cells for arm in one.cell.arms for rate in rates_of(arm)}) > 1


def series_of(methods: Iterable[StudyMethod]) -> dict[StudyMethod, int]:
    """The colour and marker of each method, as the index of ``colour``, ``marker`` and ``dash``."""
    listed = list(methods)
    taken = {method: METHOD_SERIES[method] for method in listed if method in METHOD_SERIES}
    free = (index for index in count(1) if index not in taken.values())
    return taken | {method: next(free) for method in listed if method not in taken}


def view_of(record: StudyRecord) -> View:
    """The view of a record, finished or not."""
    cells = [NamedCell(label, cell) for label, cell in zip(_labels(record), record.cells, strict=True)]
    arms = [arm for cell in record.cells for arm in cell.arms]
    noun = "task" if len({cell.task for cell in record.cells}) == len(record.cells) else "cell"
    pairs = _pairs(record, cells, noun)
    one_seed = all(len(arm.runs) == 1 for arm in arms)
    searched = any(arm.trials for arm in arms)
    one_model = len({(cell.model, *axis_words(cell)) for cell in record.cells}) <= 1
    return View(
        record=record,
        cells=cells,
        arms=_arms_in_order(record),
        series=_series(arms),
        pairs=pairs,
        trainings=_trainings(cells),
        noun=noun,
        seeds=_seeds(arms),
        one_seed=one_seed,
        searched=searched,
        has_base=any(cell.base for cell in record.cells),
        simple=one_seed and one_model and not searched and len(pairs) <= 1,
    )


def _arms_in_order(record: StudyRecord) -> list[str]:
    """The arms in the plan's order, also where a cell has lost one; without a plan as they appear."""
    found = dict.fromkeys(arm.name for cell in record.cells for arm in cell.arms)
    planned = [name for name in (record.plan or {}).get("methods", []) if name in found]
    return list(dict.fromkeys([*planned, *found]))


def rates_of(arm: StudyArm) -> list[float | None]:
    """The learning rates of an arm's runs, ascending, each once; None for one that is not known."""
    rates = {run.learning_rate or arm.learning_rate for run in arm.runs}
    return sorted(rates, key=lambda rate: (rate is None, rate))


def arm_title(name: str) -> str:
    """The arm's name at the beginning of a line, unchanged if the user chose it."""
    return capitalised(arm_name(name)) if name in method_names() else name


def capitalised(words: str) -> str:
    """``words`` with a capital first letter, but for a name such as rsLoRA, which has its own capitals."""
    first = words.split(maxsplit=1)[0] if words.strip() else ""
    return words if any(letter.isupper() for letter in first) else words[:1].upper() + words[1:]


def _labels(record: StudyRecord) -> list[str]:
    """Each cell's task, with the properties in which the study's cells differ.

    The number of training rows is one of them only if it is crossed: tasks may have different numbers.
    """
    cells = record.cells
    *axes, rows = zip(*(axis_words(cell) for cell in cells), strict=True) if cells else [()]
    facts = [
        _other_trainings(cells),
        [cell.format for cell in cells],
        [cell.protocol for cell in cells],
        [cell.model for cell in cells],
        *axes,
    ]
    labels = _with_facts([cell.task for cell in cells], facts)
    if len(set(labels)) < len(labels):
        labels = _with_facts(labels, [rows])
    counts = Counter(labels)
    return [
        f"{label}, trained on {cell.train.task or cell.train.source}"
        if counts[label] > 1 and cell.train
        else label
        for label, cell in zip(labels, cells, strict=True)
    ]


def _with_facts(labels: Sequence[str], facts: Sequence[Sequence[str]]) -> list[str]:
    varying = [values for values in facts if len(set(values)) > 1]
    return [
        ", ".join([label, *(values[place] for values in varying if values[place])])
        for place, label in enumerate(labels)
    ]


def _other_trainings(cells: Sequence[StudyCell]) -> list[str]:
    """What each cell's runs were trained on if it is not only the tested task, else nothing."""
    names = [_trained_on(cell) for cell in cells]
    return [
        f"trained on {tasks_of(name, set(names))}" if name not in ("", cell.task) else ""
        for name, cell in zip(names, cells, strict=True)
    ]


def _trained_on(cell: StudyCell) -> str:
    if cell.train is None:
        return ""
    return "+".join(cell.train.parts) if cell.train.parts else cell.train.task or ""


def tasks_of(name: str, others: Collection[str]) -> str:
    """A training set's name; of a mix how many tasks it has, unless another mix has as many.

    Args:
        name: A task, or the tasks of a mix with "+" between them.
        others: The names of all training sets.
    """
    if "+" not in name:
        return name
    alike = [one for one in others if one.count("+") == name.count("+")]
    return listed(name.split("+")) if len(alike) > 1 else f"{name.count('+') + 1} tasks"


def remarks(labels: Sequence[str], told: Sequence[str]) -> list[str]:
    """Each remark once, after the labels of the cells that it is about; it stands alone if all cells have it.

    Args:
        labels: The cells' labels.
        told: The remark on each cell; "" is none.
    """
    found = [one for one in dict.fromkeys(told) if one]
    about = {one: [label for label, own in zip(labels, told, strict=True) if own == one] for one in found}
    return [one if len(about[one]) == len(labels) else f"{'; '.join(about[one])}: {one}" for one in found]


def axis_words(one: StudyCell | PooledDifference) -> tuple[str, str, str, str]:
    """The settings that a plan may cross, in words."""
    return (
        f"rank {one.rank}" if one.rank else "no rank",
        f"batch size {one.batch_size}" if one.batch_size else "any batch size",
        f"{one.epochs:g} epoch{'' if one.epochs == 1 else 's'}" if one.epochs else "any number of epochs",
        f"{one.training_rows:,} training rows{of_each_task(one)}"
        if one.training_rows
        else "all training rows",
    )


def of_each_task(one: StudyCell | PooledDifference) -> str:
    """What follows the number of training rows if a mix was trained on: it is the number of each task's."""
    return " of each task" if isinstance(one, StudyCell) and one.train and one.train.parts else ""


def _series(arms: Sequence[StudyArm]) -> dict[str, int]:
    """The first arm of a method has the method's look; further arms take the other looks in turn."""
    methods: dict[str, StudyMethod] = {arm.name: arm.method for arm in arms}
    first = {method: name for name, method in reversed(methods.items())}
    of_method = series_of(dict.fromkeys(methods.values()))
    taken = {name: of_method[method] for method, name in first.items()}
    free = (index for index in count(1) if index not in taken.values())
    return taken | {name: next(free) for name in methods if name not in taken}


def _pairs(record: StudyRecord, cells: Sequence[NamedCell], noun: str) -> list[Pair]:
    pairs: dict[tuple[str, str], Pair] = {}

    def pair(one: StudyDifference) -> Pair:
        arms = (one.from_arm, one.to_arm)
        return pairs.setdefault(arms, Pair(*arms, single=[], pooled=[]))

    for place, named in enumerate(cells):
        for one in named.cell.differences:
            pair(one).single.append(NamedDifference(place, named.label, named.cell, one))
    models = {one.model for one in record.pooled}
    axes = [{axis_words(one)[place] for one in record.pooled} for place in range(4)]
    mixed_seeds = len({one.one_seed for one in record.pooled}) > 1
    for pool in record.pooled:
        nothing = len(pool.tells_nothing)
        some = nothing < len(pool.cells)
        parts = [f"Mean of {numbers.counted(len(pool.cells), noun)}"]
        parts += [f"{nothing} without a verdict"] if nothing and some else []
        parts += ["one seed each"] if pool.one_seed and mixed_seeds else []
        parts += [pool.model] if len(models) > 1 else []
        parts += [words for words, values in zip(axis_words(pool), axes, strict=True) if len(values) > 1]
        key = (pool.model, axis_words(pool), tuple(pool.cells), pool.one_seed)
        named = NamedDifference(key, ", ".join(parts), None, pool.difference, nothing)
        pair(pool.difference).pooled.append(named)
    named = (arm for pair in pairs for arm in pair)
    order = {arm: place for place, arm in enumerate(dict.fromkeys([*_arms_in_order(record), *named]))}
    return sorted(  # DoRA minus LoRA first, as in the record
        pairs.values(),
        key=lambda one: (
            (one.from_arm, one.to_arm) != ("lora", "dora"),
            order[one.from_arm],
            order[one.to_arm],
        ),
    )


def _trainings(cells: Sequence[NamedCell]) -> list[Training]:
    """The arms of all cells, grouped by cells that share a run, directly or through others.

    Cells of different ranks are apart, although a method without a rank has the same runs in all of them.
    """
    groups: list[tuple[list[int], tuple[str, ...], set[str]]] = []
    for place, named in enumerate(cells):
        axes = axis_words(named.cell)
        runs = {run.run for arm in named.cell.arms for run in arm.runs}
        sharing = [group for group in groups if group[1] == axes and group[2] & runs]
        groups = [group for group in groups if group not in sharing]
        places = sorted([place, *(other for group in sharing for other in group[0])])
        groups.append((places, axes, runs.union(*(group[2] for group in sharing))))
    grouped = [[cells[place] for place in places] for places, *_ in sorted(groups, key=lambda one: one[0])]
    trained = [(group, arms) for group in grouped if (arms := _merged_arms(group))]
    return [Training(_training_label(group) if len(groups) > 1 else "", arms) for group, arms in trained]


def _training_label(group: Sequence[NamedCell]) -> str:
    """The names of the cells, or what was trained on if that is a mix, which all of them share."""
    shared = {one.label.removeprefix(f"{one.cell.task}, ") for one in group}
    mixed = all(one.cell.train is not None and one.cell.train.parts for one in group)
    return shared.pop() if mixed and len(shared) == 1 else "; ".join(one.label for one in group)


def _merged_arms(group: Sequence[NamedCell]) -> list[StudyArm]:
    """Each arm of the cells once, with all its runs on any of them."""
    arms: dict[str, StudyArm] = {}
    for named in group:
        for arm in named.cell.arms:
            runs = {run.run: run for run in [*arm.runs, *(arms[arm.name].runs if arm.name in arms else [])]}
            whole = sorted(runs.values(), key=lambda run: run.seed)
            arms[arm.name] = arm if len(whole) == len(arm.runs) else arm.model_copy(update={"runs": whole})
    return list(arms.values())


def _seeds(arms: Iterable[StudyArm]) -> str:
    counts = sorted({len(arm.runs) for arm in arms})
    if len(counts) > 1:
        return f"{counts[0]} to {counts[-1]} seeds"
    return numbers.counted(counts[0], "seed") if counts else "no seeds"
