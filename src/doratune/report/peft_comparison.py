"""PEFT's ``method_comparison`` with intervals, and which of its results can be told from LoRA's.

The files hold totals of one run each. So results are compared as if on different rows, and nothing is known
of other seeds.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from doratune.records.files import write_json_atomic, write_text_atomic
from doratune.records.peft_results import ROWS, PeftResult, PeftResults, by_model
from doratune.report import numbers
from doratune.report.blocks import NONE, Block, Bullets, Code, Entry, Figures, Page, Section, Table, Text
from doratune.report.files import HTML_NAME, MARKDOWN_NAME
from doratune.report.markup import to_html, to_markdown
from doratune.report.peft_comparison_plot import figures
from doratune.stats.accuracy import accuracy_with_interval
from doratune.stats.holm import holm
from doratune.stats.proportions import Unpaired, two_proportion_p, unpaired_difference
from doratune.stats.seeds import SIGNIFICANCE
from doratune.wording import listed

JSON_NAME = "method_comparison.json"
TITLE = "PEFT's method comparison, with intervals"
REFERENCE = ("lora/", "-rank32")  #: of the experiment that the others are compared with

Outcome = Literal["higher", "undecided", "lower"]
HEADINGS: dict[Outcome, str] = {
    "higher": "Higher than LoRA",
    "undecided": "Cannot be told from LoRA",
    "lower": "Lower than LoRA",
}
LIMITS = (
    f"All experiments answered the same {ROWS:,} test rows of GSM8K, but the files hold only totals. So the "
    "test is of two proportions on different rows (z, pooled variance), corrected by Holm's method. It is "
    "conservative, because two adapters of one model tend to be right on the same rows: with the answers to "
    "each row, more differences could be told."
)
ONE_RUN = (
    "Every result is of one training with one learning rate. What can be told is told of these trained "
    "adapters: no interval covers another seed or another learning rate."
)
FORGETTING = (
    "Forgetting is how much the mean loss per token on Wikipedia texts rose through training, in nats. It "
    "has no interval, as the files hold only the mean."
)


@dataclass(frozen=True)
class Compared:
    """A result next to LoRA's.

    Attributes:
        result: The result.
        interval: Wilson's 95 % interval of its accuracy.
        difference: From the reference; None for the reference, and where there is none.
        p_adjusted: The difference's p, corrected over all results of the model.
        outcome: What that p tells; None without a reference.
    """

    result: PeftResult
    interval: tuple[float, float]
    difference: Unpaired | None = None
    p_adjusted: float | None = None
    outcome: Outcome | None = None


@dataclass(frozen=True)
class Comparison:
    """All results of one base model, the most accurate first.

    Attributes:
        model: The base model.
        rows: The results.
        reference: LoRA's; None if it is not among them.
        best: How many results cannot be told from the most accurate one, corrected over all pairs.
    """

    model: str
    rows: list[Compared]
    reference: PeftResult | None
    best: int

    def group(self, outcome: Outcome) -> list[Compared]:
        """The results of that outcome; LoRA itself is among those that cannot be told from it."""
        return [
            one
            for one in self.rows
            if one.outcome == outcome or (outcome == "undecided" and one.result is self.reference)
        ]


@dataclass(frozen=True)
class PeftView:
    """Everything that the page, the terminal and the JSON file show."""

    models: list[Comparison]
    notes: list[str]  #: what a reader must know, such as files that were left out
    skipped: list[str]
    reproduce: str  #: the command
    version: str  #: doratune's


def view_of_peft(results: PeftResults, reproduce: str, version: str) -> PeftView:
    """Compare the results of each base model.

    Args:
        results: What was read.
        reproduce: The command.
        version: doratune's version.
    """
    models = [_compared(model, rows) for model, rows in by_model(results.found).items()]
    return PeftView(models, _notes(results), results.skipped, reproduce, version)


def _compared(model: str, results: Sequence[PeftResult]) -> Comparison:
    # of several the first by name: a reference that is chosen by its result would be no reference
    reference = min(_references(results), key=lambda one: one.experiment, default=None)
    intervals = [accuracy_with_interval(one.correct, ROWS)[1:] for one in results]
    if reference is None:
        rows = [Compared(one, interval) for one, interval in zip(results, intervals, strict=True)]
        return Comparison(model, rows, None, _like_the_best(results))
    differences = {
        one.experiment: unpaired_difference(reference.correct, one.correct, ROWS)
        for one in results
        if one is not reference
    }
    corrected = dict(zip(differences, holm([one.p_value for one in differences.values()]), strict=True))
    rows = []
    for one, interval in zip(results, intervals, strict=True):
        found, p = differences.get(one.experiment), corrected.get(one.experiment)
        rows.append(Compared(one, interval, found, p, _outcome(found, p)))
    return Comparison(model, rows, reference, _like_the_best(results))


def _references(results: Iterable[PeftResult]) -> list[PeftResult]:
    """The results of LoRA with which the others may be compared."""
    start, end = REFERENCE
    return [one for one in results if one.experiment.startswith(start) and one.experiment.endswith(end)]


def _outcome(found: Unpaired | None, p_adjusted: float | None) -> Outcome | None:
    if found is None or p_adjusted is None:
        return None
    if p_adjusted >= SIGNIFICANCE:
        return "undecided"
    return "higher" if found.value > 0 else "lower"


def _like_the_best(results: Sequence[PeftResult]) -> int:
    """How many cannot be told from the first, which was not known in advance: so corrected over all pairs."""
    pairs = list(itertools.combinations(results, 2))
    corrected = holm([two_proportion_p(one.correct, other.correct, ROWS) for one, other in pairs])
    best = zip(pairs, corrected, strict=True)
    return sum(p >= SIGNIFICANCE for (one, _), p in best if one is results[0])


def page_of_peft(view: PeftView) -> Page:
    """The whole page."""
    several = len(view.models) > 1
    sections = [Section("result", "Result", _outcome_blocks(view))]
    for place, one in enumerate(view.models):
        name = f"{one.model}: " if several else ""
        for number, (heading, rows) in enumerate(_groups(one)):
            shown = f"group{place}-{number}"
            blocks: list[Block] = [_figures(one, rows, shown), table(one, rows, heading)]
            sections.append(Section(shown, f"{name}{heading}", blocks))
    sections.append(Section("limits", "How to read it", [Bullets([LIMITS, ONE_RUN, FORGETTING])]))
    sections.append(Section("repeat", "Reproduce", [Code(view.reproduce)]))
    return Page(TITLE, None, view.version, sections)


def _outcome_blocks(view: PeftView) -> list[Block]:
    """What can be told, and what was left out."""
    blocks: list[Block] = []
    for one in view.models:
        first, *others = _words(one)
        blocks += [Text(first, "headline"), *(Text(line) for line in others)]
    return [*blocks, *(Text(line, "note") for line in [ONE_RUN, *view.notes])]


def terminal_blocks(view: PeftView, *, wide: bool) -> list[Block]:
    """The same for the terminal: the tables, then what they tell.

    Args:
        view: What to show.
        wide: Whether there is room for all columns.
    """
    blocks: list[Block] = []
    for one in view.models:
        for heading, rows in _groups(one):
            whole = table(one, rows, heading)
            blocks += [Text(f"{heading} ({one.model})", "headline"), whole if wide else _narrow(whole)]
    cut = [] if wide else [Text("The report also has parameters, memory, file size and time.", "aside")]
    return [*blocks, *cut, Text(LIMITS, "aside"), *_outcome_blocks(view)]


def _groups(one: Comparison) -> list[tuple[str, list[Compared]]]:
    """The results by what can be told of them, with headings; all in one group where there is no LoRA."""
    if one.reference is None:
        return [("All results", one.rows)]
    groups = [(heading, one.group(outcome)) for outcome, heading in HEADINGS.items()]
    return [(heading, rows) for heading, rows in groups if rows]


def _words(one: Comparison) -> list[str]:
    """What can be told of one model's results, a sentence each."""
    count = len(one.rows)
    name = f"{one.model}, GSM8K: "
    best, *others = one.rows
    if len(others) == 1:
        which = "the other result"
    else:
        some = f"{one.best} of the" if one.best else "all"
        which = f"{some} {len(others)} others, corrected over all {math.comb(count, 2):,} pairs"
    first = (
        f"The most accurate, {best.result.experiment} ({_accuracy(best)}), "
        f"{'cannot' if one.best else 'can'} be told from {which}."
    )
    if one.reference is None:
        start, end = REFERENCE
        return [
            f"{name}{numbers.counted(count, 'result')}, but none named {start}…{end} to compare with.",
            *([first] if others else []),
        ]
    told = [len(one.group(outcome)) for outcome in ("higher", "lower")]
    lora = next(row for row in one.rows if row.result is one.reference)
    share = one.reference.accuracy
    apart = 100 * 1.96 * math.sqrt(2 * share * (1 - share) / ROWS)
    is_lora = f"LoRA is {one.reference.experiment}, {_accuracy(lora)}."
    if not others:
        return [f"{name}no result to compare with LoRA's. {is_lora}"]
    if len(others) == 1:
        which = "higher" if told[0] else "lower"
        words = f"is {which} than LoRA" if any(told) else "cannot be told from LoRA"
        (other,) = (row for row in one.rows if row.result is not one.reference)
        differ = f"{other.result.experiment} ({_accuracy(other)}) {words}, by unpaired counts."
    else:
        differ = (
            f"{sum(told)} of the {len(others)} pairs with LoRA {'differs' if sum(told) == 1 else 'differ'} "
            f"beyond what unpaired counts allow: {told[0]} higher, {told[1]} lower."
        )
    return [
        f"{name}{differ} {is_lora}",
        f"Near LoRA's accuracy two results must be about {apart:.1f} points apart to differ at p = 0.05, "
        "before any correction.",
        *([first] if len(others) > 1 else []),
    ]


def _accuracy(one: Compared) -> str:
    return f"{numbers.percent(one.result.accuracy)}, interval {numbers.interval(one.interval)}"


def _notes(results: PeftResults) -> list[str]:
    seeds = sorted({one.seed for one in results.found})
    devices = sorted({one.accelerator or "an unknown device" for one in results.found})
    several = len(seeds) > 1
    lines = [f"The seeds differ: {', '.join(map(str, seeds))}."] if several else []
    if len(devices) > 1:
        lines.append(f"Memory and times come from different devices: {', '.join(devices)}.")
    for model, rows in by_model(results.found).items():
        names = sorted(one.experiment for one in _references(rows))
        if len(names) > 1:
            lines.append(f"{model}: {listed(names)} are all LoRA; the first is compared with the others.")
    return [*lines, *results.skipped]


def table(one: Comparison, rows: Sequence[Compared], caption: str) -> Table:
    """A row per result, the most accurate first."""
    columns = [
        Entry("Experiment", "learning rate"),
        Entry("Accuracy", "interval"),
        Entry(f"{numbers.MINUS} LoRA", "interval, points"),
        Entry("Corrected p"),
        Entry("Forgetting"),
        Entry("Parameters", "file"),
        Entry("Training", "peak memory"),
    ]
    return Table(caption, columns, [_row(one, row) for row in rows])


def _narrow(whole: Table) -> Table:
    """The columns that fit into 80 of the terminal."""
    return Table(whole.caption, whole.columns[:5], [row[:5] for row in whole.rows])


def _row(one: Comparison, row: Compared) -> list[Entry]:
    found, result = row.difference, row.result
    method, _, variant = result.experiment.partition("/")
    rate = f"rate {numbers.learning_rate(result.learning_rate)}"
    return [
        Entry(method, f"{variant}, {rate}" if variant else rate),
        Entry(numbers.percent(result.accuracy), numbers.interval(row.interval)),
        Entry(numbers.signed(100 * found.value), numbers.signed_interval((100 * found.low, 100 * found.high)))
        if found
        else Entry("LoRA" if result is one.reference else NONE),
        Entry(
            NONE
            if row.p_adjusted is None
            else numbers.p_value(row.p_adjusted).removeprefix("p ").lstrip("= ")
        ),
        Entry(NONE if result.forgetting is None else numbers.signed(result.forgetting, 3)),
        Entry(
            numbers.large(result.parameters),
            NONE if result.file_bytes is None else numbers.byte_size(result.file_bytes),
        ),
        Entry(numbers.duration(result.seconds), numbers.gigabytes(result.memory)),
    ]


def _figures(one: Comparison, rows: Sequence[Compared], name: str) -> Figures:
    reference = next((row for row in one.rows if row.result is one.reference), None)
    shown = [(row.result.experiment, row.result.accuracy, row.interval, row.outcome) for row in rows]
    band = reference.interval if reference else None
    return figures(shown, band, name)


def write_peft_comparison(view: PeftView, folder: Path) -> list[Path]:
    """Write method_comparison.json, report.md and report.html into ``folder``.

    Returns:
        Their paths.
    """
    paths = [folder / name for name in (JSON_NAME, MARKDOWN_NAME, HTML_NAME)]
    page = page_of_peft(view)
    markdown, html = to_markdown(page), to_html(page)
    write_json_atomic(paths[0], as_json(view))
    write_text_atomic(paths[1], markdown)
    write_text_atomic(paths[2], html)
    return paths


def as_json(view: PeftView) -> dict[str, object]:
    """Everything in the tables, as JSON types; shares of rows, not points."""
    return {
        "test_rows": ROWS,
        "models": [
            {
                "model": one.model,
                "reference": one.reference.experiment if one.reference else None,
                "results": [_entry(row) for row in one.rows],
            }
            for one in view.models
        ],
        "skipped": view.skipped,
        "doratune": view.version,
        "reproduce": view.reproduce,
    }


def _entry(row: Compared) -> dict[str, object]:
    result, found = row.result, row.difference
    return {
        "experiment": result.experiment,
        "peft_type": result.method,
        "learning_rate": result.learning_rate,
        "seed": result.seed,
        "correct": result.correct,
        "accuracy": result.accuracy,
        "interval": list(row.interval),
        "difference": found.value if found else None,
        "difference_interval": [found.low, found.high] if found else None,
        "p_value": found.p_value if found else None,
        "p_adjusted": row.p_adjusted,
        "outcome": row.outcome,
        "forgetting": result.forgetting,
        "parameters": result.parameters,
        "memory_bytes": result.memory,
        "file_bytes": result.file_bytes,
        "seconds": result.seconds,
    }
