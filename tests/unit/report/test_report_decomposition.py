"""The table, the sentences and the plots of an analysis with made-up numbers."""

from __future__ import annotations

import io
import re
import xml.etree.ElementTree
from pathlib import Path

import pytest
from rich.console import Console

from doratune.records.analysis import AnalysisRecord, GainDrift, KindCorrelation, RunAnalysis, WeightChange
from doratune.records.storage import read_analysis
from doratune.records.study import StudyMethod
from doratune.report.decomposition import correlation_table, gain_sentences, kinds, sources
from doratune.report.decomposition_plots import whole_plot
from doratune.report.files import write_analysis
from doratune.report.terminal import print_analysis

SVG = "{http://www.w3.org/2000/svg}"


def run(name: str, method: StudyMethod, r: float | None, *, layers: int = 3) -> RunAnalysis:
    changes = [
        WeightChange(
            step=step,
            layer=f"layers.{layer}.{kind}",
            kind=kind,
            magnitude=0.01 * step + 0.001 * layer,
            direction=1e-4 * (step + layer),
        )
        for step in (10, 20)
        for layer in range(layers)
        for kind in ("q_proj", "v_proj")
    ]
    gains = [
        GainDrift(step=step, layer=f"layers.{layer}.q_proj", kind="q_proj", mean=1.001, deviation=deviation)
        for step in (10, 20)
        for layer, deviation in ((0, 0.003), (1, 0.004))
    ]
    slope = None if r is None else 10 * r
    return RunAnalysis(
        name=name,
        method=method,
        run=f"runs/{name}",
        steps=[10, 20],
        changes=changes,
        gains=gains if method.startswith("dora") else [],
        correlations=[
            KindCorrelation(kind=kind, correlation=r, slope=slope, points=len(changes))
            for kind in ("all", "q_proj", "v_proj")
        ],
    )


def analysis(*runs: RunAnalysis) -> AnalysisRecord:
    return AnalysisRecord(model="tiny", runs=list(runs), reproduce="doratune analyze runs/lora")


@pytest.fixture
def four() -> AnalysisRecord:
    return analysis(
        run("a", "full", -0.5),
        run("b", "lora", 0.875),
        run("c", "dora", None),
        run("d", "dora-attached-norm", -0.25),
    )


def test_our_figures_are_next_to_the_papers(four: AnalysisRecord) -> None:
    table = correlation_table(four)
    assert [column.text for column in table.columns] == ["Run", "Paper", "all", "q_proj", "v_proj"]
    shown = [(row[0].detail, row[1].text, row[2].text, row[2].detail) for row in table.rows]
    assert shown == [
        ("full fine-tuning", "−0.62", "−0.50", "−5"),
        ("LoRA", "+0.83", "+0.88", "+8.8"),
        ("DoRA", "−0.31", "–", "–"),
        ("DoRA with attached norm", "–", "−0.25", "−2.5"),
    ]
    assert "6 weights of tiny at 2 checkpoints" in sources(four)


def test_runs_of_other_layers_leave_gaps() -> None:
    narrow = run("b", "lora", 0.5)
    narrow = narrow.model_copy(update={"correlations": narrow.correlations[:2]})
    table = correlation_table(analysis(narrow, run("c", "dora", 0.25, layers=2)))
    assert kinds(analysis(narrow)) == ["all", "q_proj"]
    assert table.rows[0][4].text == "–" and table.rows[1][4].text == "+0.25"
    assert "4 to 6 weights" in sources(analysis(narrow, run("c", "dora", 0.25, layers=2)))


def test_runs_of_other_layers_leave_gaps_in_the_plot() -> None:
    queries = run("dora", "dora", -0.3)
    queries = queries.model_copy(
        update={"changes": [one for one in queries.changes if one.kind == "q_proj"], "correlations": []}
    )
    assert "LoRA, v_proj" in whole_plot(analysis(run("lora", "lora", 0.8), queries))


def test_the_gains_are_those_of_the_last_step() -> None:
    (sentence,) = gain_sentences(analysis(run("b", "lora", 0.5), run("c", "dora", 0.5)))
    # sqrt((0.003² + 0.004²) / 2)
    assert "c: g" in sentence and "1.0010" in sentence and "0.0035" in sentence and "layers.1" in sentence


def test_plots_say_what_they_show_and_take_the_pages_colours(four: AnalysisRecord) -> None:
    source = whole_plot(four)
    drawn, element = xml.etree.ElementTree.fromstring(source), source.partition("</style>")[2]
    assert "#0001" not in element and "#00000" not in element
    assert {"full fine-tuning, q_proj: r = −0.50", "DoRA, q_proj: r = –"} <= set(
        re.split(r"[.;] (?=[A-Zf])|\.$", drawn.get("aria-label", ""))
    )
    text = "".join(drawn.itertext())
    assert "r = +0.88" in text and "DoRA with attached norm" in text and "ΔM" in text
    for index in (1, 2, 3, 4):
        # six points of q_proj, as many of the other kind, and all of them together
        assert len(re.findall(rf'<use [^>]*style="fill: var\(--s{index}\)', element)) == 24


def test_many_seeds_of_a_method_share_its_panel() -> None:
    seeds = [run(f"seed{index}", "lora", r) for index, r in enumerate((0.5, 0.25, 0.75, 0.125))]
    two, four = (whole_plot(analysis(*seeds[:count])) for count in (2, 4))
    assert "r = +0.50, +0.25" in two and "r = +0.12 to +0.75" in four
    assert two.count(">LoRA, all</text>") == four.count(">LoRA, all</text>") == 1


def test_the_file_is_whole_by_itself(four: AnalysisRecord, tmp_path: Path) -> None:
    json_path, plot = write_analysis(four, tmp_path / "new")
    assert read_analysis(json_path) == four
    source = plot.read_text(encoding="utf-8")
    drawn = xml.etree.ElementTree.fromstring(source)
    style = drawn.findtext(f"{SVG}style") or ""
    assert drawn.tag == f"{SVG}svg"
    assert {name for name in re.findall(r"var\((--\w+)\)", source)} <= set(re.findall(r"(--[\w-]+):", style))
    assert "@media (prefers-color-scheme: dark)" in style and "body" not in style
    assert source.count("full fine-tuning, ") >= 3, "a panel for each kind"
    assert whole_plot(four) == source, "the same every time"


def test_a_measurement_is_kept_to_the_digits_of_its_weights() -> None:
    change = WeightChange(step=1, layer="q_proj", kind="q_proj", magnitude=2 / 3, direction=1e-20 / 3)
    assert change.magnitude == pytest.approx(2 / 3, rel=1e-7) and len(str(change.magnitude)) == 9
    assert change.direction == pytest.approx(1e-20 / 3, rel=1e-6)


def test_names_cannot_break_the_plot() -> None:
    hostile = run('<b>"&', "lora", 0.5)
    changed = [one.model_copy(update={"kind": "<i>&"}) for one in hostile.changes]
    kind = hostile.correlations[1].model_copy(update={"kind": "<i>&"})
    hostile = hostile.model_copy(update={"changes": changed, "correlations": [hostile.correlations[0], kind]})
    xml.etree.ElementTree.fromstring(whole_plot(analysis(hostile)))


def test_the_terminal_shows_it_in_80_columns(four: AnalysisRecord) -> None:
    console = Console(width=80, file=io.StringIO())
    print_analysis(four, console)
    printed = console.file.getvalue()  # type: ignore[attr-defined]
    assert "+0.88" in printed and "VL-BART" in printed and "ended at a mean of 1.0010" in printed
