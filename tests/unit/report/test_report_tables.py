"""Single entries of the tables: digits, denominators, columns and labels."""

from __future__ import annotations

import io
import re
from pathlib import Path

import pytest
from rich.console import Console
from synthetic_study import study

from doratune.records.storage import read_study
from doratune.records.study import (
    Forgetting,
    KeptArm,
    MeasureDifference,
    MeasuredPair,
    MeasureMean,
    Needed,
    StudyCell,
    StudyRecord,
    arm_name,
)
from doratune.report import measured, numbers, search, tables, verdicts
from doratune.report.blocks import Page, Section, Table
from doratune.report.fronts import TIME, front_sentences
from doratune.report.markup import to_html
from doratune.report.terminal import print_summary
from doratune.report.view import view_of

OLDER = Path(__file__).parents[1] / "older_study.json"


@pytest.fixture(scope="module")
def record() -> StudyRecord:
    return read_study(OLDER)


@pytest.mark.parametrize(
    ("bounds", "digits"),
    [
        ((0.00021, 0.00042), 5),
        ((-0.0102, -0.0082), 3),
        ((-0.25, 0.0), 2),
        ((0.12341, 0.12343), 5),
        ((-0.4, 2.8), 1),
        ((10.0, 22.0), 0),
        ((0.0, 0.0), 0),
    ],
)
def test_digits_of_an_interval(bounds: tuple[float, float], digits: int) -> None:
    assert numbers.digits_of(bounds) == digits


def with_difference(record: StudyRecord, low: float, mean: float, high: float) -> Table:
    found = MeasureDifference(mean=mean, interval=(low, high), p_value=0.0001)
    pair = MeasuredPair(from_arm="lora", to_arm="dora", measure="nll", difference=found)
    cell = record.cells[0].model_copy(update={"measures": [pair]})
    return measured.measure_table(view_of(record.model_copy(update={"cells": [cell]})))


def test_small_differences_have_the_digits_that_their_interval_needs(record: StudyRecord) -> None:
    entry = with_difference(record, 0.00021, 0.000315, 0.00042).rows[-1][1]
    assert (entry.text, entry.detail) == ("+0.00032", "+0.00021 to +0.00042; p < 0.001")
    entry = with_difference(record, -0.25, -0.125, 0.0).rows[-1][1]
    assert (entry.text, entry.detail) == ("−0.125", "−0.250 to 0.000; p < 0.001")


def test_tied_rows_of_several_seeds_are_said_out_of_all(record: StudyRecord) -> None:
    cell = record.cells[0]
    for table in (tables.accuracy_table(view_of(record)), tables.accuracy_list(view_of(record))):
        details = " ".join(entry.detail for row in table.rows for entry in row)
        tied = sum(run.result.tied or 0 for run in cell.arms[0].runs)
        assert f", {tied:,} of {3 * cell.rows:,} tied" in details
        assert cell.base is not None and f", {cell.base.tied} tied" in details


def test_what_a_record_says_of_its_rates_and_rows_is_a_sentence(record: StudyRecord) -> None:
    cell = record.cells[0].model_copy(update={"extended": (0, 2)})
    note = search.rate_note(view_of(record.model_copy(update={"cells": [cell, *record.cells[1:]]})))
    assert "rates beyond it were tried with every method: 2 larger on boolq, instruct." in note
    needed = Needed(points=1.0, rows=None, seeds=5, rows_range=(126, None), seeds_range=(3, 9))
    difference = record.cells[2].differences[0]
    outcome = difference.model_copy(update={"needed": [needed], "outcome": "undecided"})
    cell = record.cells[2].model_copy(update={"differences": [outcome]})
    table = verdicts.needed_table(view_of(record.model_copy(update={"cells": [cell]})))
    assert table is not None and table.rows[0][1].text == "126 rows or more"


def test_the_terminal_names_rates_at_an_end_that_no_verdict_names(record: StudyRecord) -> None:
    told = {True: "", False: ""}
    for nothing in told:
        cells = [one for one in record.cells if bool(one.tells_nothing) == nothing]
        file = io.StringIO()
        print_summary(record.model_copy(update={"cells": cells, "pooled": []}), Console(file=file, width=200))
        told[nothing] = " ".join(file.getvalue().split())
    assert "Some chosen rates are at the end of what was tried" in told[True]
    assert "LoRA on boolq, instruct (the largest)" in told[True]
    assert "a best rate is still at an end of those tried" in told[False]
    assert "Some chosen rates" not in told[False], "its verdict says so"


def test_two_methods_are_told_apart_by_cost_in_plain_words(record: StudyRecord) -> None:
    cell = record.cells[4]
    view = view_of(record.model_copy(update={"cells": [cell], "pooled": []}))
    by_name = {arm.name: arm for arm in cell.arms}
    faster = {name: TIME.of(arm) or 0.0 for name, arm in by_name.items()}
    cheap, dear = sorted(by_name.values(), key=lambda arm: faster[arm.name])
    for accuracy, words in (
        (0.9, "is cheaper, "),
        (0.1, "is cheaper and more accurate than "),
    ):
        arms = [cheap, dear.model_copy(update={"mean": accuracy})]
        changed = cell.model_copy(update={"arms": arms})
        (sentence, *_) = front_sentences(view_of(view.record.model_copy(update={"cells": [changed]})))
        assert words in sentence and "no other method" not in sentence
        assert sentence.index(arm_name(cheap.name)) < sentence.index(arm_name(dear.name))


def forgetting(arms: int) -> list[Forgetting]:
    change = MeasureDifference(mean=-0.01, interval=(-0.02, 0.0), p_value=0.05)
    value = MeasureMean(mean=0.5, interval=(0.4, 0.6))
    kept = [KeptArm(name=name, seeds=[0], value=value, change=change) for name in ("lora", "dora")[:arms]]
    return [
        Forgetting(
            model="tiny",
            trained_on="boolq",
            format="instruct",
            about="winogrande",
            measure="accuracy",
            rows=40,
            base=0.5,
            arms=kept,
            differences=[],
        )
    ]


def test_what_one_arm_keeps_is_compared_with_the_base_only(record: StudyRecord) -> None:
    table = measured.forgetting_table(record.model_copy(update={"forgetting": forgetting(1)}))
    assert table is not None
    assert [column.text for column in table.columns] == ["Method", "Kept", "− base"]
    assert {len(row) for row in table.rows} == {3}


def test_a_label_on_a_phone_names_only_what_is_there(record: StudyRecord) -> None:
    table = with_difference(record, -0.25, -0.125, 0.0)
    html = to_html(Page("Title", None, "1", [Section("a", "A", [table, table])]))
    base, lora = (
        re.search(rf">{name}.*?</tr>", html, flags=re.DOTALL)[0]  # type: ignore[index]
        for name in ("Base", "LoRA")
    )
    labels = [re.findall(r'class="label"[^>]*>(.*?)</span>', row) for row in (base, lora)]
    assert labels[0][0] == "NLL" and labels[1][0] == "NLL <small>interval</small>"
    assert re.search(r"\.scroll \+ \.scroll[^}]*margin-top", html), "two tables do not touch"


def test_a_mean_with_cells_that_tell_nothing_comes_last(record: StudyRecord) -> None:
    """The record has a mean without them, which is the headline, and one with them."""
    told = [card.label for card in verdicts.cards(view_of(record))]
    assert (told[0], told[-1]) == ("Mean of 2 cells", "Mean of 7 cells, 5 without a verdict")
    assert "The mean without such cells is the headline." in verdicts.test_note(view_of(record))
    alone = view_of(record.model_copy(update={"pooled": record.pooled[1:]}))
    assert [card.label for card in verdicts.cards(alone)] == told[1:]
    assert "headline" not in verdicts.test_note(alone)


def test_a_cell_of_a_mix_says_so_and_training_rows_only_where_they_are_crossed() -> None:
    """Cells of ARC-Easy alone and of a mix, each with its own number of rows of a task."""
    alone = study(tasks=("arc-easy", "boolq"))
    arc, boolq = (one.model_copy(update={"training_rows": 700}) for one in alone.cells)
    assert arc.train is not None
    parts = arc.train.model_copy(
        update={"task": None, "parts": {"arc-easy": 900, "boolq": 800}, "sha256": "2"}
    )
    mixed = [one.model_copy(update={"train": parts, "training_rows": 200}) for one in (arc, boolq)]
    elsewhere = boolq.model_copy(update={"train": arc.train})

    def labels(*cells: StudyCell) -> list[str]:
        return [one.label for one in view_of(alone.model_copy(update={"cells": cells, "pooled": []})).cells]

    both = ["arc-easy, trained on 2 tasks", "boolq, trained on 2 tasks"]
    assert labels(arc, boolq, *mixed) == ["arc-easy", "boolq", *both]
    other = parts.model_copy(update={"parts": {"arc-easy": 900, "piqa": 800}, "sha256": "3"})
    assert labels(mixed[0], arc.model_copy(update={"train": other})) == [
        "arc-easy, trained on arc-easy and boolq",
        "arc-easy, trained on arc-easy and piqa",
    ]
    assert labels(arc, elsewhere) == ["arc-easy", "boolq, trained on arc-easy"]
    few = arc.model_copy(update={"training_rows": 300})
    assert labels(arc, few) == ["arc-easy, 700 training rows", "arc-easy, 300 training rows"]
    few = mixed[0].model_copy(update={"training_rows": 100})
    assert labels(few, mixed[0]) == [f"arc-easy, {most} training rows of each task" for most in (100, 200)]
    view = view_of(alone.model_copy(update={"cells": [arc, *mixed], "pooled": []}))
    assert "training rows: 700 and 200 of each task" in tables.ways(view)
    all_of_it = arc.model_copy(update={"training_rows": arc.train.rows})
    scarce = parts.model_copy(update={"parts": {"arc-easy": 900, "boolq": 100}})
    few = mixed[0].model_copy(update={"train": scarce})
    of_each = "Trained on 200 of the training rows of each task."
    for cells, notes in (
        ([arc], ["Trained on 700 of the training rows."]),
        ([all_of_it], []),
        ([few], ["Trained on at most 200 of the training rows of each task."]),
        ([few.model_copy(update={"training_rows": 900})], []),
        (
            [arc, mixed[0]],
            [
                "arc-easy: Trained on 700 of the training rows.",
                f"arc-easy, trained on 2 tasks: {of_each}",
            ],
        ),
    ):
        view = view_of(alone.model_copy(update={"cells": cells, "pooled": []}))
        assert tables.data_notes(view) == notes
