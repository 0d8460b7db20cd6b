from __future__ import annotations

import html
import io
import re
from pathlib import Path

import pytest
from html_page import Page
from rich.console import Console
from synthetic_runs import evaluation, flags, record, three_runs, write_run

from doratune.records.comparison import Comparison
from doratune.records.layout import read_comparison
from doratune.records.run import RunRecord
from doratune.report.files import write_comparison
from doratune.report.html import to_html
from doratune.report.markdown import to_markdown
from doratune.report.terminal import comparison_renderable, print_evaluations
from doratune.study.comparison import build_comparison

HOSTILE = """<script>alert(1)</script> & "x" | `y` [z](http://evil.example)"""

# what a reader must find in each rendering, written out by hand
FIGURES = [
    *("51.2 %", "46.4–56.1", "80.5 %", "76.3–84.1", "82.0 %", "77.9–85.5"),
    *("49.5 %", "60.2 %", "73.2 %", "50.0 %", "52.5 %"),
    *("+1.5 points", "p = 0.461", "+13.0 points", "p < 0.001"),
    *("2.44 M", "1.78 %", "2.53 M", "1.85 %"),
    *("1 min 52 s", "1 min 46 s", "1,235", "1,309", "2.21 GB", "0.412"),
    *("no difference can be told from these rows", "dora is better", "sample, not a benchmark"),
]


@pytest.fixture(scope="module")
def comparison(tmp_path_factory: pytest.TempPathFactory) -> Comparison:
    runs = three_runs(tmp_path_factory.mktemp("runs"))
    return build_comparison(runs, title="Three made-up runs", reproduce="doratune compare --preset demo")


@pytest.fixture(scope="module")
def page(comparison: Comparison) -> str:
    return to_html(comparison)


def printed(comparison: Comparison, width: int) -> str:
    file = io.StringIO()
    Console(file=file, width=width).print(comparison_renderable(comparison))
    return file.getvalue()


def test_every_rendering_holds_every_number(comparison: Comparison, page: str) -> None:
    terminal = printed(comparison, 120)
    markdown = to_markdown(comparison).replace("\\", "")
    text = " ".join(Page(page).text)
    for figure in FIGURES:
        assert figure in terminal
        assert figure in markdown
        assert figure in text


def test_terminal_fits_80_columns_without_losing_a_number(comparison: Comparison) -> None:
    text = printed(comparison, 80)
    assert max(len(line.rstrip()) for line in text.splitlines()) <= 80
    whole = " ".join(text.split())
    assert "…" not in text
    for figure in FIGURES:
        assert figure in whole
    assert "sample-winogrande *" in text


def test_terminal_lists_many_runs_below_each_other(tmp_path: Path) -> None:
    runs = [write_run(tmp_path / f"r{i}", "dora", {"a": flags(50 + i, 100)}, name=f"r{i}") for i in range(6)]
    text = printed(build_comparison(runs, title="t", reproduce="r"), 80)
    assert max(len(line.rstrip()) for line in text.splitlines()) <= 80
    assert re.search(r"r5 +55\.0 %", text)
    assert "so there is no difference to test" in " ".join(text.split())


def test_evaluations_of_one_run(capsys: pytest.CaptureFixture[str]) -> None:
    entry = evaluation("sample-boolq", flags(322, 400), unmatched=7, protocol="generate")
    print_evaluations(RunRecord.model_validate(record("lora", [entry])))
    text = " ".join(capsys.readouterr().out.split())
    for figure in ("80.5 %", "76.3–84.1", "7 without an answer", "generate", "sample, not a benchmark"):
        assert figure in text


def test_html_stands_alone(page: str) -> None:
    assert not re.search(r"https?:|//[a-z]|url\((?!#)|@import|<script|<link|<img", page)
    parsed = Page(page)
    assert all(value.startswith("#") for value in parsed.values("xlink:href") + parsed.values("href"))
    assert parsed.values("src") == []


def test_html_is_accessible(page: str) -> None:
    parsed = Page(page)
    assert ("html", "lang", "en") in parsed.attributes
    assert parsed.seen.count("h1") == 1
    assert parsed.seen.count("h2") == 6
    labels = [value for tag, name, value in parsed.attributes if (tag, name) == ("svg", "aria-label")]
    assert len(labels) == parsed.seen.count("svg") == 3
    assert "lora 80.5 %, interval 76.3–84.1" in labels[0]
    ids = parsed.values("id")
    assert len(ids) == len(set(ids))
    assert set(parsed.values("aria-labelledby")) <= set(ids)
    assert all(f'id="{value[1:]}"' in page for value in parsed.values("xlink:href"))


def test_plots_take_the_colours_of_the_page(page: str) -> None:
    svg = "".join(re.findall(r"<svg.*?</svg>", page, flags=re.DOTALL))
    assert "var(--s1)" in svg
    assert not re.search(r"#[0-9a-f]{6}\b", svg), "a colour of its own would not follow dark mode"
    assert "<text" in svg


def test_html_is_the_same_every_time(comparison: Comparison, page: str) -> None:
    assert to_html(comparison) == page


def test_hostile_text_is_escaped(comparison: Comparison) -> None:
    arms = [arm.model_copy(update={"name": f"{arm.name}</svg><i>$x"}) for arm in comparison.arms]
    names = {arm.name: new.name for arm, new in zip(comparison.arms, arms, strict=True)}
    tasks = [
        task.model_copy(update={"task": HOSTILE, "arms": {names[k]: v for k, v in task.arms.items()}})
        for task in comparison.tasks
    ]
    changes = {
        "title": HOSTILE,
        "reproduce": HOSTILE + "\n```",
        "notes": [HOSTILE],
        "settings": {"a": HOSTILE},
    }
    hostile = comparison.model_copy(update={**changes, "tasks": tasks, "arms": arms})
    page = to_html(hostile)
    parsed = Page(page)
    assert not {"script", "i"} & set(parsed.seen)
    assert parsed.seen.count("svg") == 3
    assert HOSTILE in html.unescape(page)
    prose = to_markdown(hostile).split("````")[0]
    assert not re.search(r"(?<!\\)(<|`|\[)", prose)
    table = [line for line in prose.splitlines() if line.startswith("| ")]
    assert {len(re.findall(r"(?<!\\)\|", line)) for line in table} == {7}  # six columns, also of the training
    assert "<script>alert(1)" in printed(hostile, 200)


def test_gaps_are_said(comparison: Comparison) -> None:
    first, second = comparison.tasks
    without = first.model_copy(update={"arms": {"lora": first.arms["lora"]}, "difference": None})
    gap = comparison.model_copy(update={"tasks": [without, second]})
    assert to_markdown(gap).count("not evaluated") == 2
    assert to_html(gap).count("not evaluated") == 2
    assert printed(gap, 80).count("not evaluated") == 2


def test_formats_and_protocols_are_told_apart(comparison: Comparison) -> None:
    generate = comparison.tasks[0].model_copy(update={"protocol": "generate"})
    both = comparison.model_copy(update={"tasks": [comparison.tasks[0], generate]})
    markdown = to_markdown(both)
    assert "sample-boolq, likelihood" in markdown
    assert "sample-boolq, generate" in markdown


def test_metrics_are_told_apart(comparison: Comparison) -> None:
    assert "rows, accuracy" not in to_markdown(comparison)
    first, *others = comparison.tasks
    other = "accuracy" if first.metric == "accuracy_norm" else "accuracy_norm"
    mixed = comparison.model_copy(update={"tasks": [first.model_copy(update={"metric": other}), *others]})
    assert f"rows, {other}" in to_markdown(mixed) and f"rows, {first.metric}" in to_markdown(mixed)


def test_untrained_and_diverged_runs(tmp_path: Path) -> None:
    base = write_run(tmp_path / "base", "base", {"a": flags(5, 10)})
    alone = build_comparison([base], title="t", reproduce="r")
    assert "Training" not in to_markdown(alone)
    Page(to_html(alone))
    dora = write_run(tmp_path / "dora", "dora", {"a": flags(5, 10)})
    (dora / "metrics.jsonl").write_text('{"step": 1, "loss": NaN}\n')
    assert "Training loss" not in to_html(build_comparison([dora], title="t", reproduce="r"))


def test_files_are_written(comparison: Comparison, page: str, tmp_path: Path) -> None:
    paths = write_comparison(comparison, tmp_path / "new")
    assert [path.name for path in paths] == ["comparison.json", "comparison.md", "report.html"]
    assert read_comparison(paths[0]) == comparison
    assert paths[1].read_text() == to_markdown(comparison)
    assert paths[2].read_text() == page


def luminance(colour: str) -> float:
    channels = [int(colour[start : start + 2], 16) / 255 for start in (1, 3, 5)]
    red, green, blue = (c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels)
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue


def contrast(first: str, second: str) -> float:
    darker, lighter = sorted((luminance(first), luminance(second)))
    return (lighter + 0.05) / (darker + 0.05)


def test_contrast_keeps_to_wcag_aa(page: str) -> None:
    themes = [
        dict(re.findall(r"--([\w-]+): (#\w{6})", block))
        for block in re.findall(r":root \{(.*?)\}", page, re.S)
    ]
    assert len(themes) == 3
    for theme in themes:
        for text in ("text", "quiet"):
            assert min(contrast(theme[text], theme[back]) for back in ("paper", "raised")) >= 4.5
        assert contrast(theme["note"], theme["note-paper"]) >= 4.5
        assert min(contrast(theme[f"s{index}"], theme["paper"]) for index in range(7)) >= 3
