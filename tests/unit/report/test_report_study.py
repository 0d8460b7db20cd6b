"""The report of a study: several seeds, methods and cells, with a search for the learning rate."""

from __future__ import annotations

import html
import io
import json
import re
from collections.abc import Sequence
from pathlib import Path

import pytest
from html_page import Page
from rich.console import Console
from synthetic_study import analysis, study

from doratune.cli.main import main
from doratune.records.analysis import AnalysisRecord
from doratune.records.files import write_json_atomic
from doratune.records.layout import ANALYSIS_NAME
from doratune.records.storage import write_study
from doratune.records.study import StudyRecord
from doratune.report import numbers, paper
from doratune.report.figures import Sheet, marker
from doratune.report.markup import to_html, to_markdown
from doratune.report.page import page_of
from doratune.report.plots.loss import loss_plot
from doratune.report.tables import cost_sentence
from doratune.report.terminal import print_summary
from doratune.report.view import METHOD_SERIES, remarks, view_of

HOSTILE = """<script>alert(1)</script> & "x" | `y` [z](http://evil.example)"""


@pytest.fixture(scope="module")
def record() -> StudyRecord:
    return study()


@pytest.fixture(scope="module")
def moved() -> AnalysisRecord:
    return analysis()


@pytest.fixture(scope="module")
def page(record: StudyRecord, moved: AnalysisRecord) -> str:
    return study_html(record, [moved])


def study_html(record: StudyRecord, analyses: Sequence[AnalysisRecord] = ()) -> str:
    return to_html(page_of(record, analyses))


def study_markdown(record: StudyRecord, analyses: Sequence[AnalysisRecord] = ()) -> str:
    return to_markdown(page_of(record, analyses))


def printed(record: StudyRecord, width: int) -> str:
    file = io.StringIO()
    print_summary(record, Console(file=file, width=width))
    return file.getvalue()


def plain(text: str) -> str:
    return " ".join(text.replace("\\", "").split())


def sections(page: str) -> list[str]:
    return re.findall(r"<h2[^>]*>(.*?)</h2>", page)


def test_every_rendering_holds_the_results(record: StudyRecord, moved: AnalysisRecord, page: str) -> None:
    renderings = [printed(record, 120), study_markdown(record, [moved]), " ".join(Page(page).text)]
    figures = [record.title, record.question, "Note: The rows are made up.".removeprefix("Note: ")]
    for cell in record.cells:
        first = cell.differences[0]
        figures += [cell.task, numbers.points(first.points), numbers.signed_interval(first.interval)]
        figures += [numbers.p_value(first.p_value), first.verdict[1:]]
        for arm in cell.arms:
            figures += [numbers.percent(arm.mean), numbers.interval(arm.interval)]
            figures.append(numbers.learning_rate(arm.learning_rate))
    figures += [numbers.points(one.difference.points) for one in record.pooled]
    for rendering in map(plain, renderings):
        for figure in figures:
            assert plain(figure) in rendering, figure


def test_pages_hold_every_difference_seed_and_run(record: StudyRecord, page: str) -> None:
    for rendering in (plain(study_markdown(record)), plain(" ".join(Page(page).text))):
        for cell in record.cells:
            for one in cell.differences:
                assert numbers.signed_interval(one.interval) in rendering
                for seed in one.seeds:
                    assert f"{seed.only_to} : {seed.only_from}" in rendering
            for arm in cell.arms:
                assert all(run.run in rendering for run in arm.runs)
                assert numbers.duration(arm.runs[1].training.seconds) in rendering  # the median of three
            for need in cell.differences[0].needed:
                low, high = need.rows_range or (None, None)
                if low and high:
                    assert (f"{low:,} rows" if low == high else f"{low:,} to {high:,} rows") in rendering


def test_the_verdict_comes_first_and_repeating_last(page: str) -> None:
    assert sections(page) == [
        "Result",
        "Accuracy",
        "Differences",
        "Learning rates",
        "Training and its cost",
        "How the weights moved",
        "Settings",
        "Environment",
        "Reproduce",
    ]
    # counted from the simulation: only arc-easy has an effect, which DoRA's 2,000 rows and three seeds show
    assert "DoRA compared with LoRA on 3 tasks: more accurate on 1, less accurate on none, " in page
    assert "undecided on 2." in page


def test_cost_is_relative_to_lora(record: StudyRecord, page: str) -> None:
    # seconds 112 + seed over 100 + seed, the median seed is 1; memory 2.1 over 2.0 GB
    words = "Training with DoRA took 1.12× LoRA's time and 1.05× its peak memory, medians over 3 seeds"
    for text in (html.unescape(page), study_markdown(record), printed(record, 200)):
        assert words in text


def test_times_of_a_busy_processor_are_said_to_be(record: StudyRecord) -> None:
    def of_one_run(share: float, gpu: str | None = None, environments: int = 1) -> str | None:
        written = record.to_dict() | {"environments": environments}
        training = written["cells"][0]["arms"][0]["runs"][0]["training"]
        training["cpu_seconds"] = share * training["seconds"]
        written["environment"]["gpu"] = gpu
        return cost_sentence(view_of(StudyRecord.model_validate_json(json.dumps(written), strict=True)))

    said = of_one_run(0.8)
    assert said is not None and said.endswith("waited for the processor for more than 10 % of the time.")
    assert re.search(r"with care: 1 of \d+ trainings waited", said)
    quiet = cost_sentence(view_of(record))
    assert quiet is not None and "with care" not in quiet
    assert of_one_run(0.95) == quiet
    assert of_one_run(0.8, gpu="a GPU, which the processor waits for") == quiet
    assert of_one_run(0.95, environments=2) is None


def test_terminal_fits_80_columns(record: StudyRecord) -> None:
    for one in (record, study(methods=("lora", "dora"))):
        text = printed(one, 80)
        assert max(len(line.rstrip()) for line in text.splitlines()) <= 80
        assert "…" not in text


def test_html_is_accessible(page: str) -> None:
    parsed = Page(page)
    assert ("html", "lang", "en") in parsed.attributes
    assert parsed.seen.count("h1") == 1
    labels = [value for tag, name, value in parsed.attributes if (tag, name) == ("svg", "aria-label")]
    # per cell accuracy, learning rates, loss and two costs; a forest per pair; three runs analysed, one with
    # a gain, which has a row to itself and is there narrow and wide
    assert len(labels) == parsed.seen.count("svg") == 3 * 5 + 3 + 3 + 2
    ids = parsed.values("id")
    assert len(ids) == len(set(ids))
    assert set(parsed.values("aria-labelledby")) <= set(ids)
    assert all(f'id="{value[1:]}"' in page for value in parsed.values("xlink:href"))


def test_plots_say_what_they_show(record: StudyRecord, page: str) -> None:
    labels = " ".join(re.findall(r'aria-label="([^"]*)"', page))
    for cell in record.cells:
        for one in cell.differences:
            assert numbers.signed_interval(one.interval) in labels
    assert "DoRA chose 1e-4" in labels and "LoRA chose 2e-4" in labels
    assert "dora-seed0: correlation −0." in labels


def test_methods_differ_in_colour_and_in_shape(page: str) -> None:
    looks = [(METHOD_SERIES[method], marker(METHOD_SERIES[method])) for method in METHOD_SERIES]
    assert all(len(set(one)) == len(METHOD_SERIES) for one in zip(*looks, strict=True))
    svg = "".join(re.findall(r"<svg.*?</svg>", page, flags=re.DOTALL))
    assert not re.search(r"#[0-9a-f]{6}\b", svg), "a fixed colour would not follow dark mode"
    assert all(f"var(--s{index})" in svg for index in METHOD_SERIES.values())


def test_every_weight_at_every_checkpoint_is_drawn(moved: AnalysisRecord, page: str) -> None:
    figure = next(
        part for part in re.findall(r"<svg.*?</svg>", page, re.DOTALL) if "lora-seed0: correlation" in part
    )
    drawn = re.findall(r'<use xlink:href="#change0-0-\w+" x="([\d.]+)" y="([\d.]+)" style="fill', figure)
    legend = len({one.kind for one in moved.runs[0].changes})
    assert len(drawn) >= len(moved.runs[0].changes) + legend


def test_loss_is_the_mean_over_seeds(record: StudyRecord) -> None:
    cell = record.cells[0]
    arm = cell.arms[0]

    def drawn(curves: list[list[tuple[int, float | None]]]) -> str | None:
        runs = [run.model_copy(update={"curve": curve}) for run, curve in zip(arm.runs, curves, strict=True)]
        arms = [arm.model_copy(update={"runs": runs})]
        view = view_of(record.model_copy(update={"cells": [cell.model_copy(update={"arms": arms})]}))
        return loss_plot(view.trainings[0], view, Sheet("x"))

    svg = drawn([[(1, 2.0 + seed), (2, None if seed == 1 else 9.0), (3, 1.0)] for seed in range(3)])
    assert svg and "LoRA from 3.000 to 1.000" in svg  # (2 + 3 + 4) / 3; step 2 is not finite with every seed
    assert drawn([[(1, None)]] * 3) is None


def test_hostile_text_is_escaped(moved: AnalysisRecord) -> None:
    one = study(methods=("lora", "dora"), tasks=("boolq", "arc-easy"), pending=(HOSTILE,))
    named = [
        cell.model_copy(update={"task": HOSTILE + str(place), "model": HOSTILE, "note": HOSTILE})
        for place, cell in enumerate(one.cells)
    ]
    changes = {name: HOSTILE for name in ("title", "question")}
    hostile = one.model_copy(
        update={
            **changes,
            "cells": named,
            "notes": [HOSTILE],
            "plan": {HOSTILE: HOSTILE},
            "settings": {"a": HOSTILE},
            "reproduce": HOSTILE + "\n```",
        }
    )
    runs = [run.model_copy(update={"name": HOSTILE, "run": HOSTILE}) for run in moved.runs]
    hostile_moved = moved.model_copy(update={"model": HOSTILE, "runs": runs, "reproduce": HOSTILE})
    page = study_html(hostile, [hostile_moved])
    parsed = Page(page)
    assert parsed.seen.count("script") == 1
    assert HOSTILE in html.unescape(page)
    markdown = study_markdown(hostile, [hostile_moved])
    prose = re.sub(r"(?ms)^(`{3,})\n.*?^\1$", "", markdown)
    assert not re.search(r"(?<!\\)(<|`|\[)", prose)
    assert "<script>alert(1)" in printed(hostile, 300)


def test_unfinished_studies_say_so(moved: AnalysisRecord) -> None:
    part = study(
        methods=("lora", "dora"), tasks=("boolq",), pending=("piqa (instruct)", "arc-easy (instruct)")
    )
    nothing = part.model_copy(update={"cells": [], "pooled": []})
    for one, words in ((part, "2 of 3 cells are still to be run"), (nothing, "2 of 2 cells are still")):
        page = study_html(one)
        assert sections(page)[-2:] == ["Still to be run", "Reproduce"]
        for text in (page, study_markdown(one), plain(printed(one, 200))):
            assert words in text and "piqa (instruct)" in text
        Page(page)
    assert "No two methods have been compared yet." in study_html(nothing)
    assert "still to be run" not in study_html(study(methods=("lora",), tasks=("boolq",)))


def test_one_seed_and_one_task() -> None:
    one = study(methods=("lora", "dora"), tasks=("boolq",), seeds=1)
    page = " ".join(Page(study_html(one)).text)
    verdict = one.cells[0].differences[0].verdict
    for text in (page, study_markdown(one), plain(printed(one, 300))):
        assert plain(text).count(verdict[1:]) == 1, "on the card, without a headline that repeats it"
        assert "Accuracy with its Wilson 95 % interval" in text
        assert "measured once each" in text
        assert "One seed says something about these trained adapters, not about other seeds" in plain(text)
    assert "for this seed only" in page
    assert "small: single seeds" not in page


def test_one_method_without_search_or_base(record: StudyRecord) -> None:
    cell = study(methods=("lora",), tasks=("boolq",)).cells[0]
    arm = cell.arms[0].model_copy(update={"trials": []})
    bare = record.model_copy(
        update={"cells": [cell.model_copy(update={"arms": [arm], "base": None})], "pooled": []}
    )
    page = study_html(bare)
    assert "Differences" not in sections(page)
    assert "Learning rates" not in sections(page) and "Base" not in page
    assert "No two methods are compared." in study_markdown(bare)
    Page(page)


def test_a_rate_at_the_end_of_the_list_is_mentioned(record: StudyRecord) -> None:
    assert "At the end of what was tried" not in study_markdown(record)
    cell = study(methods=("lora", "dora"), tasks=("boolq",)).cells[0]
    lora, dora = cell.arms
    rates = sorted(trial.learning_rate for trial in lora.trials)
    for chosen, words in (
        (rates[0], "LoRA on boolq (the smallest)"),
        (rates[-1], "LoRA on boolq (the largest)"),
    ):
        trials = [one.model_copy(update={"chosen": one.learning_rate == chosen}) for one in lora.trials]
        arms = [lora.model_copy(update={"learning_rate": chosen, "trials": trials}), dora]
        ended = record.model_copy(update={"cells": [cell.model_copy(update={"arms": arms})], "pooled": []})
        for text in (plain(study_markdown(ended)), plain(" ".join(Page(study_html(ended)).text))):
            assert f"might have done better: {words}." in text


def test_cells_are_told_apart_by_what_differs(record: StudyRecord) -> None:
    first = record.cells[0]
    other = first.model_copy(update={"format": "instruct", "rank": 16})
    both = record.model_copy(update={"cells": [first, other]})
    text = study_markdown(both)
    assert "boolq, continuation, rank 32" in text and "boolq, instruct, rank 16" in text
    assert "on 2 cells" in text


def test_pairs_of_different_seeds_are_marked(record: StudyRecord) -> None:
    cell = record.cells[0]
    differences = [
        one.model_copy(update={"seeds": [one.seeds[0].model_copy(update={"seed": None})]})
        for one in cell.differences
    ]
    one = record.model_copy(update={"cells": [cell.model_copy(update={"differences": differences})]})
    first = differences[0].seeds[0]
    assert f"{first.only_to} : {first.only_from}" in study_markdown(one)
    assert "| Different seeds (rows won : lost, p) |" in study_markdown(one)


def test_cost_is_of_all_runs_of_an_arm(record: StudyRecord) -> None:
    """An arm whose first cell has fewer of its runs than the next one, as runs that exist may have."""
    first, second = (record.cells[0].model_copy(update={"task": task}) for task in ("a", "b"))
    lora = first.arms[0]
    first = first.model_copy(update={"arms": [lora.model_copy(update={"runs": lora.runs[:1]})]})
    second = second.model_copy(update={"arms": [lora]})
    view = view_of(record.model_copy(update={"cells": [first, second], "pooled": []}))
    (training,) = view.trainings
    assert training.arms == [lora]


def test_the_papers_averages_come_out() -> None:
    """The averages that were published with the figures, as a check of every one of them."""
    published = {"lora": (39.5, 40.7, 70.9, 76.3, 65.8), "dora": (61.9, 77.9, 77.5, 78.4, 76.8)}
    for method, averages in published.items():
        for rank, average in zip((4, 8, 16, 32, 64), averages, strict=True):
            # two were published 0.1 below what their rows give; a wrong digit would move one by 0.125 or more
            assert sum(paper.ACCURACY[method, rank]) / 8 == pytest.approx(average, abs=0.11)


def test_the_papers_figures_are_marked(record: StudyRecord, page: str) -> None:
    for text in (plain(" ".join(Page(page).text)), plain(study_markdown(record))):
        for figure in ("67.5 %", "69.7 %", "+2.2 points", "78.0 %", "81.9 %", "+3.9 points", "LLaMA-7B"):
            assert figure in text
        assert "Not the paper's model, format or protocol." in text
        assert "Tested on the public validation rows." in text
    cell = record.cells[0]
    same = {"model": "huggyllama/llama-7b", "format": "instruct", "protocol": "generate", "note": None}
    assert paper.differing(cell.model_copy(update=same)) == ""
    assert paper.differing(cell.model_copy(update={**same, "rank": 16})) == ""
    assert paper.differing(cell.model_copy(update={**same, "rank": 12})) == "rank"
    assert paper.published("dora", 16, "boolq") == 70.0
    samples_only = record.model_copy(update={"cells": record.cells[2:]})
    assert not paper.paper_cells(view_of(samples_only))
    assert "Compared with the paper" not in study_html(samples_only)
    of_others = [one.model_copy(update={"arms": [], "differences": []}) for one in record.cells]
    assert not paper.paper_cells(view_of(record.model_copy(update={"cells": of_others})))


def test_a_remark_is_made_once_and_names_cells_unless_it_is_about_all() -> None:
    assert remarks(["a", "b"], ["x.", "x."]) == ["x."]
    assert remarks(["a", "b", "c", "d"], ["x.", "y.", "x.", ""]) == ["a; c: x.", "b: y."]
    assert remarks(["a", "b"], ["", ""]) == []


def test_correlations_are_next_to_the_papers(moved: AnalysisRecord, page: str) -> None:
    for text in (plain(" ".join(Page(page).text)), plain(study_markdown(study(tasks=("boolq",)), [moved]))):
        for run in moved.runs:
            assert all(numbers.signed(one.correlation or 0, 2) in text for one in run.correlations)
        assert all(figure in text for figure in ("+0.83", "−0.31", "−0.62", "VL-BART"))
    undefined = moved.runs[0].correlations[0].model_copy(update={"correlation": None, "slope": None})
    run = moved.runs[0].model_copy(update={"correlations": [undefined], "changes": []})
    bare = study_html(study(methods=("lora",), tasks=("boolq",)), [moved.model_copy(update={"runs": [run]})])
    assert "<span>– <small>–</small></span>" in bare
    Page(bare)


def test_doratune_report_takes_a_study_with_the_analyses_in_its_folder(
    record: StudyRecord, moved: AnalysisRecord, page: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "study"
    write_study(folder, record)
    write_json_atomic(folder / "analysis-arc" / ANALYSIS_NAME, moved.to_dict())
    assert main(["report", str(folder), "--output", str(folder)]) == 0
    assert "written: " in capsys.readouterr().out
    assert (folder / "report.html").read_text() == page
    assert main(["report", str(folder), "--output", str(tmp_path / "elsewhere")]) == 0
    assert (tmp_path / "elsewhere/report.html").read_text() == page
    capsys.readouterr()
    assert main(["report", str(folder), "--output", str(folder), "--title", "Mine"]) == 2
    assert "is reported alone" in capsys.readouterr().err
