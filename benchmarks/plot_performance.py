"""The plots of docs/performance.md, out of the committed records.

    python benchmarks/plot_performance.py

Reads benchmarks/results/*.json and writes docs/performance/*.svg: a bar for each measured ratio and a line
for its target.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib as mpl
import matplotlib.pyplot as plt

ROOT = Path(__file__).parent.parent
RESULTS, OUTPUT = ROOT / "benchmarks" / "results", ROOT / "docs" / "performance"
MET, MISSED, TARGET = "#0072b2", "#d55e00", "#222222"  # told apart by colour-blind readers and in grey


@dataclass(frozen=True)
class Bar:
    """One ratio and what it should be.

    Attributes:
        label: What is divided by what.
        measured: The ratio.
        target: Its bound.
        met: Whether the ratio is on the right side of it.
    """

    label: str
    measured: float
    target: float
    met: bool


def read(name: str) -> Any:
    return json.loads((RESULTS / name).read_text(encoding="utf-8"))


def step_bars(quantity: str) -> list[Bar]:
    return [
        Bar(
            f"{result['case']['name']}\n÷ {one['against']}",
            one["measured"],
            one["at_most"],
            one["met"],
        )
        for result in read("step-cpu-zen4.json")["results"]
        for one in result["verdicts"]
        if one["quantity"] == quantity
    ]


def layer_bars() -> list[Bar]:
    return [
        Bar(result["case"]["name"], one["measured"], one["at_most"], one["met"])
        for result in read("op-h200.json")["results"]
        for one in result["verdicts"]
        if (one["provider"], one["quantity"], one["against"]) == ("doratune-dora", "gpu", "peft-lora")
    ]


def likelihood_bars() -> list[Bar]:
    results = read("likelihood-cpu-zen4.json")["results"]
    limit = 1.25
    return [Bar(one["format"], one["ratio"], limit, one["ratio"] <= limit) for one in results]


def pipeline_bars(*figures: str) -> list[Bar]:
    records = (read(f"pipeline-boolq{dtype}-cpu-zen4.json") for dtype in ("", "-float32"))
    return [
        Bar(
            f"{one['figure'].replace('_', ' ')}\n{record['model']['dtype']}",
            one["measured"],
            one["at_least"],
            one["met"],
        )
        for record in records
        for one in record["verdicts"]
        if one["figure"] in figures
    ]


def draw_bars(bars: list[Bar], title: str, name: str) -> None:
    figure, axes = plt.subplots(figsize=(7, 0.6 + 0.55 * len(bars)), layout="constrained")
    places = range(len(bars))
    axes.barh(places, [bar.measured for bar in bars], color=[MET if bar.met else MISSED for bar in bars])
    for place, bar in zip(places, bars, strict=True):
        axes.plot([bar.target] * 2, [place - 0.45, place + 0.45], color=TARGET, linewidth=2)
        mark = "met" if bar.met else "missed"
        axes.annotate(f" {bar.measured:.2f} ({mark})", (max(bar.measured, bar.target), place), va="center")
    axes.set_yticks(places, [bar.label for bar in bars])
    axes.invert_yaxis()
    axes.margins(x=0.25)
    axes.set_title(f"{title} (line: target)", loc="left")
    axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(OUTPUT / name)
    plt.close(figure)


def main() -> None:
    mpl.rcParams.update({"svg.hashsalt": "doratune", "font.size": 9})
    OUTPUT.mkdir(parents=True, exist_ok=True)
    draw_bars(layer_bars(), "A DoRA layer on an H200 ÷ PEFT's LoRA, without the host", "op-h200.svg")
    draw_bars(step_bars("time"), "Time of a DoRA step", "step-time.svg")
    draw_bars(step_bars("peak"), "Peak memory of DoRA training", "step-peak.svg")
    draw_bars(likelihood_bars(), "Likelihood ÷ one pass over the prompts", "likelihood.svg")
    speed = pipeline_bars("generate", "likelihood")
    draw_bars(speed, "Time of the original study's way ÷ doratune's", "pipeline.svg")
    draw_bars(pipeline_bars("same_answers"), "Share of rows with the same answer", "same-answers.svg")


if __name__ == "__main__":
    main()
