"""The report of a comparison: one seed, no search, a page with cards, a table, bars and curves."""

from __future__ import annotations

import html
import io
import re
from dataclasses import replace
from pathlib import Path

import pytest
from html_page import Page
from rich.console import Console
from synthetic_runs import evaluation, flags, record
from synthetic_study import comparison, study

from doratune.records.run import RunRecord
from doratune.records.storage import read_study
from doratune.records.study import StudyRecord
from doratune.report import blocks as parts
from doratune.report.figures import Sheet
from doratune.report.files import write_report
from doratune.report.markup import to_html, to_markdown
from doratune.report.page import page_of
from doratune.report.plots.differences import forest_plot
from doratune.report.plots.loss import loss_plot
from doratune.report.terminal import print_evaluations, print_summary
from doratune.report.view import view_of

HOSTILE = """<script>alert(1)</script> & "x" | `y` [z](http://evil.example)"""

# what a reader must find in each rendering, written out by hand
FIGURES = [
    *("51.2 %", "46.4–56.1", "80.5 %", "76.3–84.1", "82.0 %", "77.9–85.5"),
    *("49.5 %", "60.2 %", "73.2 %", "50.0 %", "52.5 %"),
    *("+1.5 points", "p = 0.461", "+13.0 points", "p < 0.001"),
    *("2.44 M", "1.78 %", "2.53 M", "1.85 %"),
    *("1 min 40 s", "1 min 52 s", "1,387", "1,238", "2.00 GB", "2.10 GB", "0.412", "doratune"),
    *("DoRA is more accurate than LoRA", "compatible with differences in accuracy from"),
    "sample, not a benchmark",
    "Training with DoRA took 1.12× LoRA's time and 1.05× its peak memory, measured once each.",
    "more accurate on 1, less accurate on none, undecided on 1",
]


@pytest.fixture(scope="module")
def compared() -> StudyRecord:
    return comparison().model_copy(update={"notes": ["The runs were made on different machines."]})


@pytest.fixture(scope="module")
def page(compared: StudyRecord) -> str:
    return to_html(page_of(compared))


def markdown(one: StudyRecord) -> str:
    return to_markdown(page_of(one))


def printed(one: StudyRecord, width: int) -> str:
    file = io.StringIO()
    print_summary(one, Console(file=file, width=width))
    return file.getvalue()


def plain(text: str) -> str:
    return " ".join(text.replace("\\", "").split())


def test_every_rendering_holds_every_number(compared: StudyRecord, page: str) -> None:
    for text in (printed(compared, 120), markdown(compared), " ".join(Page(page).text)):
        for figure in [*FIGURES, *compared.notes]:
            assert figure in plain(text)


def test_terminal_fits_80_columns_without_losing_a_number(compared: StudyRecord) -> None:
    text = printed(compared, 80)
    assert max(len(line.rstrip()) for line in text.splitlines()) <= 80
    assert "…" not in text
    rows = {line.split(" *")[0]: line for line in text.splitlines() if line.startswith("sample-")}
    assert rows["sample-boolq"].split() == [
        *("sample-boolq", "*", "50.0", "%", "51.2", "%", "80.5", "%", "82.0", "%", "+1.5", "points")
    ]
    for figure in FIGURES:
        assert figure in plain(text)


def test_terminal_fits_the_demo_into_80_columns() -> None:
    answers = {
        "sample-boolq": {"base": flags(50, 100), "lora": flags(100, 100), "dora": flags(100, 100)},
        "sample-hellaswag": {"base": flags(33, 100), "lora": flags(70, 100), "dora": flags(52, 100)},
        "sample-winogrande": {"base": flags(52, 100), "lora": flags(9, 100), "dora": flags(88, 100)},
    }
    demo = comparison(answers)
    norm = [demo.cells[1].model_copy(update={"metric": "accuracy_norm"})]
    text = printed(demo.model_copy(update={"cells": [demo.cells[0], *norm, demo.cells[2]]}), 80)
    lines = [line.rstrip() for line in text.splitlines()]
    assert max(map(len, lines)) <= 80 and "…" not in text
    start = next(place for place, line in enumerate(lines) if line.startswith("sample-hellaswag *"))
    assert re.split(r"  +", lines[start]) == [
        *("sample-hellaswag *", "50.0 %", "33.0 %", "70.0 %", "52.0 %", "−18.0 points")
    ]
    assert re.split(r"  +", lines[start + 1])[1:] == [
        *("52.5 %", "24.6–42.7", "60.4–78.1", "42.3–61.5", "p < 0.001")
    ]
    assert re.split(r"  +", lines[start + 2]) == ["accuracy_norm"]


def test_terminal_lists_many_runs_below_each_other() -> None:
    answers = {f"r{place}": flags(50 + place, 100) for place in range(8)}
    text = printed(comparison({"a": answers}, dict.fromkeys(answers, "dora")), 80)
    assert max(len(line.rstrip()) for line in text.splitlines()) <= 80
    assert re.search(r"r7 +57\.0 %", text)
    assert "No two methods are compared." in text


def test_evaluations_of_one_run() -> None:
    entry = evaluation("sample-boolq", flags(322, 400), unmatched=7, protocol="generate")
    file = io.StringIO()
    print_evaluations(RunRecord.model_validate(record("lora", [entry])), Console(file=file, width=80))
    for figure in ("80.5 %", "76.3–84.1", "7 without an answer", "generate", "sample, not a benchmark"):
        assert figure in plain(file.getvalue())


def test_the_page_is_short(page: str) -> None:
    assert re.findall(r"<h2[^>]*>(.*?)</h2>", page) == [
        "Result",
        "Accuracy",
        "Training and its cost",
        "Settings",
        "Environment",
        "Reproduce",
    ]
    text = plain(" ".join(Page(page).text))
    for fact in ("learning rate 0.0002", "bf16 no", "targets q_proj, v_proj", "model tiny"):
        assert fact in text
    assert "sample-boolq 1,000, sample-winogrande 1,000" in text, "the rows of a mixture"
    assert "Made-up Processor 9000, 2 cores" in text and "doratune compare --preset demo" in text
    assert "SHA-256 aaaaaaaaaaaa" in text and "peft 0.21.2" in text


def test_html_stands_alone(page: str) -> None:
    assert not re.search(r"https?:|//[a-z]|url\((?!#)|@import|<link|<img|<iframe", page)
    parsed = Page(page)
    assert parsed.seen.count("script") == 1, "the page's own, without a source"
    assert all(value.startswith("#") for value in parsed.values("xlink:href") + parsed.values("href"))
    assert parsed.values("src") == []


def test_html_is_accessible(page: str) -> None:
    parsed = Page(page)
    assert ("html", "lang", "en") in parsed.attributes
    assert parsed.seen.count("h1") == 1
    labels = [value for tag, name, value in parsed.attributes if (tag, name) == ("svg", "aria-label")]
    # bars of two tasks; the losses narrow and wide
    assert len(labels) == parsed.seen.count("svg") == 2 + 2
    assert "Base 51.2 %, interval 46.4–56.1; LoRA 80.5 %, interval 76.3–84.1" in labels[0]
    ids = parsed.values("id")
    assert len(ids) == len(set(ids))
    assert set(parsed.values("aria-labelledby")) <= set(ids)
    assert all(f'id="{value[1:]}"' in page for value in parsed.values("xlink:href"))


def test_plots_take_the_colours_of_the_page(page: str) -> None:
    svg = "".join(re.findall(r"<svg.*?</svg>", page, flags=re.DOTALL))
    assert all(f"var(--s{index})" in svg for index in (0, 1, 2))
    assert not re.search(r"#[0-9a-f]{6}\b", svg), "a fixed colour would not follow dark mode"
    assert "<text" in svg


def test_html_is_the_same_every_time(compared: StudyRecord, page: str) -> None:
    assert to_html(page_of(compared)) == page


def test_hostile_text_is_escaped() -> None:
    rows = {"lora": flags(50, 100), "a</svg><i>$x": flags(60, 100)}
    answers = {HOSTILE: {"base": flags(40, 100), **rows}, "b": rows}
    whole = comparison(answers, {"a</svg><i>$x": "dora"})
    changes = {
        "title": HOSTILE,
        "reproduce": HOSTILE + "\n```",
        "notes": [HOSTILE],
        "settings": {"a": HOSTILE},
    }
    hostile = whole.model_copy(update=changes)
    page = to_html(page_of(hostile))
    parsed = Page(page)
    assert "i" not in parsed.seen and parsed.seen.count("script") == 1
    assert parsed.seen.count("svg") == 2 + 2
    assert HOSTILE in html.unescape(page)
    prose = markdown(hostile).split("````")[0]
    assert not re.search(r"(?<!\\)(<|`|\[)", prose)
    tables = re.findall(r"(?:^\| .*\n)+", prose, flags=re.MULTILINE)
    assert len(tables) == 3
    for table in tables:
        assert len({len(re.findall(r"(?<!\\)\|", line)) for line in table.splitlines()}) == 1
    assert "<script>alert(1)" in printed(hostile, 200)


def test_gaps_are_reported() -> None:
    rows = flags(50, 100)
    gap = comparison({"a": {"lora": rows}, "b": {"base": rows, "lora": rows, "dora": flags(55, 100)}})
    page = to_html(page_of(gap))
    for text in (markdown(gap), page, printed(gap, 80)):
        assert text.count("not evaluated") == 2  # neither base nor DoRA on the first task
    Page(page)


def test_properties_in_which_cells_differ_are_shown(compared: StudyRecord) -> None:
    assert "rows, accuracy" not in markdown(compared)
    first = compared.cells[0]
    same_task = [first, first.model_copy(update={"protocol": "generate", "metric": "accuracy_norm"})]
    text = markdown(compared.model_copy(update={"cells": same_task}))
    assert "sample-boolq, likelihood" in text and "sample-boolq, generate" in text
    assert "rows, accuracy_norm" in text and "rows, accuracy)" in text
    assert "Protocol: likelihood and generate" not in text  # a sentence begins with the model
    assert "protocol: likelihood and generate" in text


def test_untrained_and_diverged_runs() -> None:
    alone = comparison({"a": {"base": flags(5, 10)}})
    assert "Training" not in re.findall(r"## (\S+)", markdown(alone))
    assert "50.0 %" in printed(alone, 80)
    Page(to_html(page_of(alone)))
    one = comparison({"a": {"dora": flags(5, 10)}})
    (arm,) = one.cells[0].arms
    training = arm.runs[0].training
    assert training is not None
    run = arm.runs[0].model_copy(
        update={"curve": [(1, None)], "training": training.model_copy(update={"final_loss": None})}
    )
    arms = [arm.model_copy(update={"runs": [run]})]
    diverged = one.model_copy(update={"cells": [one.cells[0].model_copy(update={"arms": arms})]})
    page = to_html(page_of(diverged))
    assert "not finite" in page and "Training loss" not in page


def test_an_adapter_that_was_trained_elsewhere_has_no_cost() -> None:
    one = comparison()
    cells = [
        cell.model_copy(
            update={
                "arms": [
                    arm.model_copy(
                        update={
                            "learning_rate": None,
                            "engine": "peft",
                            "runs": [arm.runs[0].model_copy(update={"training": None, "curve": []})],
                        }
                    )
                    for arm in cell.arms
                ]
            }
        )
        for cell in one.cells
    ]
    elsewhere = one.model_copy(update={"cells": cells})
    text = markdown(elsewhere)
    assert "| LoRA (peft) | 2.44 M (1.78 %) | – | – | – | – |" in text
    assert "LoRA's time" not in text
    assert printed(elsewhere, 80)
    Page(to_html(page_of(elsewhere)))


def test_arms_of_one_method_have_their_own_names() -> None:
    answers = {
        name: flags(count, 100) for name, count in (("lora", 50), ("dora", 60), ("r8", 55), ("r4", 52))
    }
    named = comparison({"a": answers}, {"r8": "dora", "r4": "lora"})
    text = markdown(named)
    assert "| r8 (DoRA, doratune) |" in text and "| r4 (LoRA, doratune) |" in text
    svg = to_html(page_of(named))
    assert all(f"var(--s{index})" in svg for index in (1, 2, 3, 4)), "each arm has its own colour"


def test_runs_shared_by_several_tasks_are_trained_once(compared: StudyRecord) -> None:
    text = markdown(compared)
    assert text.count("| LoRA (doratune) |") == 1
    apart = study(methods=("lora", "dora"), tasks=("boolq", "arc-easy"))
    assert markdown(apart).count("| LoRA (boolq, doratune) |") == 1


def test_more_than_one_seed_without_a_search() -> None:
    searched = study(methods=("lora", "dora"), tasks=("boolq",))
    cell = searched.cells[0]
    arms = [arm.model_copy(update={"trials": [], "learning_rate": 1e-3}) for arm in cell.arms]
    bare = searched.model_copy(
        update={"cells": [cell.model_copy(update={"arms": arms, "validation": None})], "plan": None}
    )
    headings = re.findall(r"<h2[^>]*>(.*?)</h2>", to_html(page_of(bare)))
    assert "Differences" in headings and "Learning rates" not in headings
    assert "The plan" not in markdown(bare)


def test_given_learning_rates_that_differ_are_shown() -> None:
    one = comparison()
    cells = [
        cell.model_copy(
            update={
                "arms": [
                    arm.model_copy(update={"learning_rate": {"lora": 3e-4, "dora": 1e-4}[arm.name]})
                    for arm in cell.arms
                ]
            }
        )
        for cell in one.cells
    ]
    text = markdown(one.model_copy(update={"cells": cells}))
    assert "3e-4 (not searched) | 1e-4 (not searched)" in text
    assert "given, not searched for" in text


def test_files_are_written(compared: StudyRecord, page: str, tmp_path: Path) -> None:
    paths = write_report(compared, tmp_path / "new")
    assert [path.name for path in paths] == ["study.json", "report.md", "report.html"]
    assert read_study(paths[0]) == compared
    assert paths[1].read_text() == markdown(compared)
    assert paths[2].read_text() == page


def luminance(colour: str) -> float:
    channels = [int(colour[start : start + 2], 16) / 255 for start in (1, 3, 5)]
    red, green, blue = (c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels)
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue


def contrast(first: str, second: str) -> float:
    darker, lighter = sorted((luminance(first), luminance(second)))
    return (lighter + 0.05) / (darker + 0.05)


def test_contrast_meets_wcag_aa(page: str) -> None:
    themes = [
        dict(re.findall(r"--([\w-]+): (#\w{6})", block))
        for block in re.findall(r":root \{(.*?)\}", page, re.S)
    ]
    assert len(themes) == 3
    for theme in themes:
        for text in ("text", "quiet"):
            assert min(contrast(theme[text], theme[back]) for back in ("paper", "raised")) >= 4.5
        assert min(contrast(theme["note"], theme[back]) for back in ("note-paper", "raised")) >= 4.5
        assert min(contrast(theme[f"s{index}"], theme["paper"]) for index in range(7)) >= 3


def renderings(one: StudyRecord) -> list[str]:
    return [
        plain(text) for text in (printed(one, 300), markdown(one), " ".join(Page(to_html(page_of(one))).text))
    ]


def test_the_verdict_says_when_arms_end_below_the_base_model() -> None:
    base = flags(567, 1000)
    both = comparison({"a": {"base": base, "lora": flags(400, 1000), "dora": flags(400, 1000, 7)}})
    one = comparison({"a": {"base": base, "lora": flags(700, 1000), "dora": flags(566, 1000)}})
    neither = comparison({"a": {"base": base, "lora": flags(567, 1000), "dora": flags(700, 1000)}})
    alone = comparison({"a": {"base": base, "lora": flags(400, 1000)}})
    for text in renderings(both):
        assert "Both end below the base model (56.7 %), by 16.7 points." in text
        assert "Base 56.7 %, LoRA 40.0 %, DoRA 40.0 %; DoRA − LoRA: 0.0 points" in text
        assert "1,000 rows, 1 seed" in text
    assert all("DoRA ends below the base model (56.7 %), by 0.1 points." in text for text in renderings(one))
    unlike = comparison({"a": {"base": base, "lora": flags(400, 1000), "dora": flags(500, 1000)}})
    words = "Both end below the base model (56.7 %): DoRA by 6.7 points and LoRA by 16.7 points."
    assert all(words in text for text in renderings(unlike))
    assert not any("below the base model" in text for text in renderings(neither))
    words = "a: LoRA ends below the base model (56.7 %), by 16.7 points."  # no pair, so no card
    assert all(words in text for text in renderings(alone))


def test_tasks_on_which_neither_arm_beats_a_constant_answer_are_marked() -> None:
    at_majority = {"base": flags(500, 1000), "lora": flags(525, 1000), "dora": flags(530, 1000)}
    above = {"base": flags(500, 1000), "lora": flags(525, 1000), "dora": flags(700, 1000)}
    marked = comparison({"a": at_majority, "b": above})  # the most frequent answer is right on 52.5 %
    words = (
        "No verdict: neither LoRA nor DoRA is shown to beat always giving the most frequent answer (52.5 %)"
    )
    for text in renderings(marked):
        assert text.count(words) == 1
        assert "undecided on none. No verdict on 1: neither is shown to have learned anything there." in text
        assert "the correction leaves the cell out." in text and "headline" not in text
    (pair,) = view_of(marked).pairs
    assert [one.tells_nothing for one in pair.single] == [True, False]
    assert pair.single[1].difference.p_adjusted == pair.single[1].difference.p_value, "one task is left"
    svg = forest_plot(pair, view_of(marked), Sheet("x").wide())
    assert "a +0.5 points" in svg
    assert svg.count(">no verdict: neither is shown to learn<") == 1


def test_the_contents_list_has_every_section(page: str) -> None:
    contents = re.search(r"<nav.*?</nav>", page, re.S)
    assert contents
    links = re.findall(r'<a href="#(\w+)">(.*?)</a>', contents[0])
    assert links == re.findall(r'<h2 id="(\w+)">(.*?)</h2>', page)


def test_a_single_figure_has_the_width_of_the_page(page: str) -> None:
    figures = re.findall(r"<figure.*?</figure>", page, re.S)
    widths = [[float(width) for width in re.findall(r'viewBox="0 0 ([\d.]+)', one)] for one in figures]
    assert [len(one) for one in widths] == [1, 1, 2]  # two tasks stand side by side, the losses alone
    assert widths[2][1] > 2 * widths[2][0] == 2 * widths[0][0]


def test_overlapping_losses_can_be_told_apart() -> None:
    one = comparison()
    (training,) = view_of(one).trainings
    svg = loss_plot(training, view_of(one), Sheet("x"))  # both curves are the same by construction
    assert svg and "DoRA is at most 0.000 from LoRA." in svg and ">minus LoRA<" in svg
    lora, dora = training.arms
    (run,) = dora.runs
    shifted = run.model_copy(update={"curve": [(step, (loss or 0) + 0.25) for step, loss in run.curve]})
    apart = replace(training, arms=[lora, dora.model_copy(update={"runs": [shifted]})])
    svg = loss_plot(apart, view_of(one), Sheet("x"))
    assert svg and "DoRA is at most 0.250 from LoRA." in svg
    single = loss_plot(replace(training, arms=[lora]), view_of(one), Sheet("x"))
    assert single and "minus" not in single


def test_settings_that_differ_come_first() -> None:
    one = comparison()
    differing = one.model_copy(update={"differing": {"batch_size": {"lora": 16, "dora": None}}})
    for text in renderings(differing)[1:]:
        facts = text[text.index("What differs") :]
        assert facts.index("LoRA 16, DoRA not set") < facts.index("The same everywhere")
        assert facts.index("The same everywhere") < facts.index("q_proj, v_proj")
    assert "What differs" not in markdown(one)


def test_settings_name_the_test_file_and_how_many_of_its_rows_were_evaluated() -> None:
    one = comparison()
    first, second = one.cells
    longer = first.model_copy(update={"test": first.test.model_copy(update={"rows": 3270})})
    text = plain(markdown(one.model_copy(update={"cells": [longer, second]})))
    assert "test rows of sample-boolq: 400 of the 3,270 rows of made-up (test)" in text
    assert "test rows of sample-winogrande: all 400 rows of made-up (test)" in text
    assert first.train is not None
    other = first.train.model_copy(update={"task": "sample-piqa", "parts": None, "sha256": "2"})
    after_other = longer.model_copy(update={"train": other})
    text = plain(markdown(one.model_copy(update={"cells": [first, after_other]})))
    assert "test rows of sample-boolq, trained on 2 tasks: all 400 rows" in text
    assert "test rows of sample-boolq, trained on sample-piqa: 400 of the 3,270 rows" in text


def test_cells_whose_runs_overlap_are_one_training() -> None:
    """The third cell has the runs of the first and of the second, which share none."""
    searched = study(methods=("lora", "dora"), tasks=("boolq", "arc-easy"))
    first, second = searched.cells
    merged = [
        one.model_copy(update={"runs": [*one.runs[:1], *other.runs[1:]]})
        for one, other in zip(first.arms, second.arms, strict=True)
    ]
    third = first.model_copy(update={"task": "piqa", "arms": merged})
    cells = [first, second, third]
    for order in (cells, [third, first, second], [first, third, second]):
        (training,) = view_of(searched.model_copy(update={"cells": order, "pooled": []})).trainings
        assert [arm.name for arm in training.arms] == ["lora", "dora"]
        assert all(len(arm.runs) == 6 for arm in training.arms), "every run of either cell"
    assert len(view_of(searched.model_copy(update={"cells": [first, second]})).trainings) == 2


def test_markdown_shows_underscores_and_tildes_as_they_are() -> None:
    title = "_a_ ~~b~~ rank_pattern __c__"
    text = markdown(comparison().model_copy(update={"title": title}))
    assert text.startswith("# \\_a\\_ \\~\\~b\\~\\~ rank_pattern \\_\\_c\\_\\_\n")


def test_markdown_has_no_heading_of_pictures_alone() -> None:
    pictures = parts.Figures(lambda: [])
    blocks: list[parts.Block] = [parts.Heading("Drawn"), pictures, parts.Heading("Told"), parts.Text("words")]
    blocks += [parts.Heading("Last"), pictures]
    text = to_markdown(parts.Page("Title", None, "1", [parts.Section("s", "Section", blocks)]))
    assert text == "# Title\n\n## Section\n\n### Told\n\nwords\n"
