"""The README is short, its links lead somewhere, and its figures are those of the committed records."""

import json
import re
from pathlib import Path

import pytest

from doratune.records.storage import read_study

ROOT = Path(__file__).resolve().parents[3]
TEXT = (ROOT / "README.md").read_text(encoding="utf-8")
LINKS = re.findall(r'(?:\]\(|src="|srcset=")([^)"]+)', TEXT)


def test_it_is_short() -> None:
    assert len(TEXT.split()) <= 900
    assert len(re.findall(r"<img |!\[", TEXT)) == 3
    assert len(re.findall(r"^\|[-|: ]+\|$", TEXT, flags=re.MULTILINE)) == 2


@pytest.mark.parametrize("target", sorted({link for link in LINKS if not link.startswith("https://")}))
def test_its_links_lead_somewhere(target: str) -> None:
    assert (ROOT / target.partition("#")[0]).exists()


def test_it_has_no_figures_but_those_checked_here() -> None:
    """Figures are decimals; versions, sizes of models and arguments of commands are not meant."""
    prose = re.sub(r"```.*?```|\]\([^)]*\)|<[^>]*>", "", TEXT, flags=re.DOTALL)
    prose = prose.replace("Python 3.11", "").replace("arXiv 2402.09353", "").replace("Apache-2.0", "")
    assert re.findall(r"\d+\.\d+", prose) == ["1.04", "0.87", "0.55", "0.7", "0.3"]


def test_the_step_of_llama_7b() -> None:
    record = json.loads((ROOT / "benchmarks/results/step-llama7b-h200.json").read_text(encoding="utf-8"))
    (result,) = record["results"]
    median = {one["provider"]: one["milliseconds"]["median"] for one in result["providers"]}
    ratios = [
        median["doratune-dora"] / median[other] for other in ("doratune-lora", "peft-lora", "peft-dora")
    ]
    sentence = TEXT[TEXT.index("On an H200") :].partition("([")[0]
    assert re.findall(r"(\d\.\d\d)×", sentence) == [f"{ratio:.2f}" for ratio in ratios]


def test_the_study() -> None:
    study = json.loads((ROOT / "docs/results/studies/main/study.json").read_text(encoding="utf-8"))
    headline = study["pooled"][0]
    text = " ".join(TEXT.split())
    assert not study["pending"] and headline["difference"]["outcome"] == "undecided"
    assert len(headline["cells"]) == 6 and "On the mean of the six cells with a verdict" in text
    assert f"with a verdict {headline['difference']['verdict'].split(' (')[0]}." in text
    methods = read_study(ROOT / "docs/results/studies/methods/study.json")
    compared = [one for cell in methods.cells for one in cell.differences if one.from_arm == "lora"]
    assert len(methods.plan["methods"]) - len({"lora", "dora", "delora-lambda-1"}) == 8
    assert not methods.pending and "nor one of eight other methods over LoRA" in text
    assert [one.to_arm for one in compared if one.outcome != "undecided" or one.interval[0] > 0] == ["delora"]
    assert next(one.points for one in compared if one.to_arm == "delora") < 0
    assert "Mean of 6" in (ROOT / "docs/pictures/forest.svg").read_text(encoding="utf-8")
