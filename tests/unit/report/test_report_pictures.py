"""The README's pictures are what their commands make of the committed records."""

from __future__ import annotations

import json
import re
from importlib.metadata import version
from pathlib import Path

import pytest

import pictures
from doratune.errors import InputError
from doratune.records.storage import read_study
from doratune.report.view import view_of

DRAWN_WITH = "3.11.2"  # of matplotlib; another version may place things differently


@pytest.mark.parametrize("name", pictures.DRAWN)
def test_committed_pictures_are_what_the_command_writes(name: str) -> None:
    for file, drawn in pictures.files_of(name).items():
        committed = (pictures.PICTURES / file).read_text(encoding="utf-8")
        assert words(committed) == words(drawn)
        if version("matplotlib") == DRAWN_WITH:
            assert committed == drawn


def words(svg: str) -> list[str]:
    return re.findall(r">([^<>]*\S[^<>]*)</text>", svg) + re.findall(r'aria-label="([^"]*)"', svg)


def test_pictures_follow_the_theme_and_need_no_page() -> None:
    light, dark = pictures.files_of("step-time").values()
    assert words(light) == words(dark)
    assert "var(" not in light + dark
    assert "#0b69b3" in light and "#0b69b3" not in dark and "#62b6f0" in dark


def test_step_times_are_those_of_the_records() -> None:
    shown = " ".join(words(pictures.files_of("step-time")["step-time.svg"]))
    for machine in pictures.MACHINES:
        record = json.loads((pictures.RESULTS / machine.record).read_text(encoding="utf-8"))
        (result,) = (one for one in record["results"] if one["case"]["name"] == machine.case)
        by_name = {one["provider"]: one for one in result["providers"]}
        unit, size = machine.unit
        for provider in pictures.PROVIDERS:
            median = by_name[provider]["milliseconds"]["median"] / size
            ratio = by_name[provider]["ratios"]["time"]["peft-lora"]
            assert f"{median:,.{0 if size == 1 else 1}f} {unit} ({ratio:.2f}×)" in shown
        # what the title says
        assert by_name["doratune-dora"]["ratios"]["time"]["peft-lora"] < 1


def test_the_forest_has_every_cell() -> None:
    shown = words(pictures.files_of("forest")["forest.svg"])
    cells = view_of(pictures.records.study("main")).cells
    assert len(cells) == 8 and {one.label for one in cells} <= set(shown)


def test_the_forest_marks_cells_that_tell_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    older = read_study(Path(__file__).parents[1] / "older_study.json")
    monkeypatch.setattr(pictures.records, "study", lambda name: older)
    shown = words(pictures.files_of("forest")["forest.svg"])
    cells = older.cells
    assert all(f"{cell.task}, {cell.format}" in shown for cell in cells)
    assert shown.count("no verdict: neither is shown to learn") == 5
    assert sum(cell.tells_nothing is not None for cell in cells) == 5


def test_a_report_that_is_not_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="there is no report"):
        pictures.demo_report(tmp_path)
