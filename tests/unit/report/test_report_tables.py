"""Single entries of the tables: digits, denominators, columns and labels."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from doratune.records.storage import read_study
from doratune.records.study import (
    Forgetting,
    KeptArm,
    MeasureDifference,
    MeasuredPair,
    MeasureMean,
    StudyRecord,
)
from doratune.report import measured, numbers, tables
from doratune.report.blocks import Page, Section, Table
from doratune.report.markup import to_html
from doratune.report.view import view_of

DOCS = Path(__file__).parents[3] / "docs/results/smollm2"


@pytest.fixture(scope="module")
def record() -> StudyRecord:
    return read_study(DOCS / "study.json")


@pytest.mark.parametrize(
    ("width", "digits"), [(0.00021, 5), (0.0117, 3), (0.1, 2), (0.99, 2), (1.0, 1), (12.0, 0), (0.0, 0)]
)
def test_digits_of_an_interval(width: float, digits: int) -> None:
    assert numbers.digits_of(width) == digits


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
