"""docs/results says what the committed records say."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from results_pages.bars import Bar, chart
from results_pages.records import RECORDS, fit
from results_pages.write import OUTPUT, TEMPLATES, results_pages

COMPUTED = re.compile(r"\{\{.*?\}\}|\{%.*?%\}", re.DOTALL)
CODE = re.compile(r"^```.*?^```|`[^`]*`|\]\([^)]*\)", re.DOTALL | re.MULTILINE)


def test_every_page_is_what_the_command_writes() -> None:
    pages = results_pages()
    stale = [
        name
        for name, text in pages.items()
        if not (OUTPUT / name).is_file() or (OUTPUT / name).read_text(encoding="utf-8") != text
    ]
    assert not stale, "run: python benchmarks/results_pages"
    committed = {path.name for path in OUTPUT.glob("*.md")} | {
        f"plots/{path.name}" for path in (OUTPUT / "plots").iterdir()
    }
    assert committed == set(pages)


@pytest.mark.parametrize("template", sorted(TEMPLATES.glob("*.md")), ids=lambda path: path.stem)
def test_no_figure_is_typed_by_hand(template: Path) -> None:
    prose = CODE.sub("", COMPUTED.sub("", template.read_text(encoding="utf-8")))
    prose = re.sub(r"[Ss]ection \d\.\d|95 %", "", prose)
    assert re.findall(r"\d+\.\d+|\d+ (?:%|ms|GB|times)", prose) == [], "figures come from a record"


def test_a_bar_is_as_long_as_its_value_and_said_in_words() -> None:
    drawn = chart("a & b", [Bar("half", 0.5, text="0.50"), Bar("one", 1.0, target=2.0, text="1.00")])
    half, one = (float(width) for width in re.findall(r'<rect[^>]* width="([\d.]+)"', drawn))
    assert one == pytest.approx(2 * half, abs=0.1)
    assert "<title>a &amp; b</title>" in drawn and "<desc>half: 0.50; one: 1.00</desc>" in drawn
    assert "prefers-color-scheme: dark" in drawn


def test_a_line_through_points_on_a_line() -> None:
    assert fit([(1, 5), (2, 7), (4, 11)]) == pytest.approx((2, 3))


def test_the_notebook_counts_launches_as_the_records_do() -> None:
    page = (OUTPUT.parent / "notebook" / "gpu.md").read_text(encoding="utf-8")
    before, now = (
        json.loads((RECORDS / f"{name}.json").read_text())["results"]["bfloat16"]
        for name in ("launches-before", "launches")
    )
    for title, layer in {
        "our DoRA, norms held": "doratune-dora-held",
        "our DoRA, each call on its own": "doratune-dora",
        "our LoRA": "doratune-lora",
        "PEFT's LoRA": "peft-lora",
        "PEFT's DoRA": "peft-dora",
    }.items():
        counts = [one[layer][key] for key in ("launches", "python_calls") for one in (before, now)]
        assert f"| {title} | {' | '.join(map(str, counts))} |" in page


def test_the_page_on_serving_says_what_its_records_say() -> None:
    page = (OUTPUT.parent / "serving.md").read_text(encoding="utf-8")
    llama, memory = (
        json.loads((RECORDS / f"{name}.json").read_text()) for name in ("llama-cpp-check", "merge-memory-cpu")
    )
    right = llama["perplexity"]["unmerged"]
    for title, name in {"exported in F32": "F32", "exported with `--requantize Q8_0`": "Q8_0"}.items():
        compared = llama["compared"][f"adapter: unmerged in transformers, llama.cpp in {name}"]
        figures = f"{compared['equal_texts']} | {llama['perplexity'][f'llama.cpp {name}']:.4f} | {right:.4f}"
        assert f"| {title} | {figures} |" in page
    assert llama["passed"] and all(one["whole_ratio"] <= memory["bound"] for one in memory["results"])
    low, high = sorted(f"{one['whole_ratio']:.2f}" for one in memory["results"])
    assert f"{low} and {high} times the largest shard" in " ".join(page.split())
