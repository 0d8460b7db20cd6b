"""The figures that the paper's authors published for LLaMA-7B, next to the study's.

The published figures are of one run each. Accuracies: the authors' repository NVlabs/DoRA, the table of LoRA
and DoRA with varying ranks for LLaMA-7B in commonsense_reasoning/README.md. Correlations: arXiv 2402.09353,
figure 2.
"""

from __future__ import annotations

from types import MappingProxyType

from doratune.records.study import StudyCell, StudyMethod
from doratune.report import numbers
from doratune.report.blocks import NONE, Entry, Table
from doratune.report.view import NamedCell, View, remarks
from doratune.wording import listed

MODEL = "LLaMA-7B"
RANK = 32  # the paper's main setting
TASKS = ("boolq", "piqa", "social_i_qa", "hellaswag", "winogrande", "arc-easy", "arc-challenge", "openbookqa")

ACCURACY = MappingProxyType(
    {
        ("lora", 4): (2.3, 46.1, 18.3, 19.7, 55.2, 65.4, 51.9, 57.0),
        ("lora", 8): (31.3, 57.0, 44.0, 11.8, 43.3, 45.7, 39.2, 53.8),
        ("lora", 16): (69.9, 77.8, 75.1, 72.1, 55.8, 77.1, 62.2, 78.0),
        ("lora", 32): (67.5, 80.8, 78.2, 83.4, 80.4, 78.0, 62.6, 79.1),
        ("lora", 64): (66.7, 79.1, 75.7, 17.6, 78.8, 73.3, 59.6, 75.2),
        ("dora", 4): (51.3, 42.2, 77.8, 25.4, 78.8, 78.7, 62.5, 78.6),
        ("dora", 8): (69.9, 81.8, 79.7, 85.2, 80.1, 81.5, 65.7, 79.8),
        ("dora", 16): (70.0, 82.6, 79.7, 83.2, 80.6, 80.6, 65.4, 77.6),
        ("dora", 32): (69.7, 83.4, 78.6, 87.2, 81.0, 81.9, 66.2, 79.2),
        ("dora", 64): (70.1, 82.0, 75.6, 85.9, 79.7, 79.1, 63.7, 78.4),
    }
)
"""Percent right by (method, rank), in the order of ``TASKS``."""

CORRELATION: MappingProxyType[StudyMethod, float] = MappingProxyType(
    {"full": -0.62, "lora": 0.83, "dora": -0.31}
)
"""Correlations of the change of magnitude and of direction (section 3.2 and figure 2)."""

ACCURACY_NOTE = (
    f"The paper's figures ({MODEL}; from the authors' repository, NVlabs/DoRA) are of one run each, trained "
    "once on all eight tasks together, in the format instruct, with generated answers. They "
    "cannot be expected of another model, format or split, and no interval was published."
)


def paper_cells(view: View) -> list[NamedCell]:
    """The cells with a task of the paper and an arm of LoRA or DoRA."""
    return [
        one
        for one in view.cells
        if one.cell.task in TASKS and any(one.arm(name) for name in ("lora", "dora"))
    ]


def paper_table(view: View) -> Table:
    """The study's LoRA and DoRA next to the paper's, a row for each of ``paper_cells``."""
    rows = [[Entry(one.label), *_ours(one), *_theirs(one.cell)] for one in paper_cells(view)]
    names = ("LoRA", "DoRA", f"DoRA {numbers.MINUS} LoRA")
    columns = [Entry("Task"), *(Entry(name, "here") for name in names)]
    columns += [Entry(name, f"paper, {MODEL}") for name in names]
    return Table("The study's accuracies compared with the paper's", columns, rows)


def accuracy_notes(view: View) -> list[str]:
    """In what the cells differ from the paper's, and what its figures are."""
    found = paper_cells(view)
    apart = [f"Not the paper's {words}." if (words := differing(one.cell)) else "" for one in found]
    labels = [one.label for one in found]
    notes = [one.cell.note or "" for one in found]
    return [*remarks(labels, apart), *remarks(labels, notes), ACCURACY_NOTE]


def published(method: StudyMethod, rank: int, task: str) -> float | None:
    """The paper's accuracy in percent, or None where there is none."""
    found = ACCURACY.get((method, rank))
    return found[TASKS.index(task)] if found and task in TASKS else None


def paper_rank(cell: StudyCell) -> int:
    """The cell's rank if the paper has it, else the paper's main one."""
    return cell.rank if cell.rank and ("lora", cell.rank) in ACCURACY else RANK


def differing(cell: StudyCell) -> str:
    """How the cell differs from the paper's: "model or format". Only its note can tell about its rows."""
    differs = {
        "model": cell.model.rpartition("/")[2].lower() != "llama-7b",
        "rank": cell.rank != paper_rank(cell),
        "format": cell.format != "instruct",
        "protocol": cell.protocol != "generate",
    }
    return listed([name for name, found in differs.items() if found], "or")


def _ours(named: NamedCell) -> list[Entry]:
    row = []
    for method in ("lora", "dora"):
        arm = named.arm(method)
        row.append(Entry(numbers.percent(arm.mean), numbers.interval(arm.interval)) if arm else Entry(NONE))
    cell = named.cell
    found = (one for one in cell.differences if (one.from_arm, one.to_arm) == ("lora", "dora"))
    one = next(found, None)
    if one is None:
        return [*row, Entry(NONE)]
    return [*row, Entry(numbers.points(one.points), numbers.signed_interval(one.interval))]


def _theirs(cell: StudyCell) -> list[Entry]:
    rank = paper_rank(cell)
    lora, dora = published("lora", rank, cell.task), published("dora", rank, cell.task)
    if lora is None or dora is None:
        return [Entry(NONE)] * 3
    where = f"rank {rank}"
    figures = [f"{lora:.1f} %", f"{dora:.1f} %", numbers.points(dora - lora)]
    return [Entry(figure, where) for figure in figures]
