"""The README's pictures.

    python benchmarks/pictures.py step-time            # time of a step, from benchmarks/results
    python benchmarks/pictures.py forest               # DoRA - LoRA by task, from the study main
    python benchmarks/pictures.py seeds                # DoRA - LoRA by seed, from paper-rates and same-rate
    python benchmarks/pictures.py ranks                # accuracy against rank, from the study ranks
    python benchmarks/pictures.py methods              # accuracy against time, from the study methods
    python benchmarks/pictures.py demo-report FOLDER   # the page of the demo, with Chromium

Each writes into docs/pictures: an SVG for light pages and one for dark ones, or a PNG. The SVGs come from
committed records only, and a test holds that the committed files are what the commands write. FOLDER is what
``doratune compare --preset demo --output FOLDER`` wrote.
"""

from __future__ import annotations

import argparse
import io
import json
import shutil
import subprocess
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from doratune.errors import InputError
from doratune.records.study import StudyCell, arm_name
from doratune.report import numbers, verdicts
from doratune.report.figures import PAPER, TEXT, WIDE, Sheet, as_file, colour, drawing, new_figure, to_svg
from doratune.report.files import HTML_NAME
from doratune.report.fronts import TIME
from doratune.report.plots.cost import cost_plot
from doratune.report.plots.crossed import crossed, crossed_plot
from doratune.report.plots.differences import forest_plot
from doratune.report.plots.rows import dotted, line_label, whisker
from doratune.report.view import METHOD_SERIES, view_of
from results_pages import records

ROOT = Path(__file__).parent.parent
RESULTS, PICTURES = ROOT / "benchmarks" / "results", ROOT / "docs" / "pictures"
PROVIDERS = {
    "peft-lora": "PEFT LoRA",
    "peft-dora": "PEFT DoRA",
    "doratune-lora": "doratune LoRA",
    "doratune-dora": "doratune DoRA",
}
PALE = 0.45  # of PEFT's bars
SCREEN = (1280, 660)  # what came out, without times, which are of one run


@dataclass(frozen=True)
class Machine:
    """One panel: a step on one machine.

    Attributes:
        record: File in benchmarks/results.
        case: Name of the case in it.
        title: What was trained on which machine.
        unit: In which times are given, and how many milliseconds it has.
    """

    record: str
    case: str
    title: str
    unit: tuple[str, float]


MACHINES = (
    Machine("step-llama7b-h200.json", "16x512-r32", "LLaMA-7B's shape on an H200", ("ms", 1)),
    Machine("step-cpu-zen4.json", "16x64-r32-all", "SmolLM2-135M on two Zen 4 cores", ("s", 1000)),
)


def step_time() -> str:
    """Time of a step with PEFT's layers and with doratune's on a GPU and on a CPU, as an ``<svg>``."""
    from matplotlib.figure import Figure
    from matplotlib.layout_engine import ConstrainedLayoutEngine

    sheet = Sheet("step-time", WIDE)
    words = []
    with drawing(sheet):
        figure = Figure(
            figsize=(WIDE, 3.5), layout=ConstrainedLayoutEngine(w_pad=0.12, h_pad=0.06, wspace=0.04)
        )
        figure.suptitle(
            "A DoRA step with doratune is faster than a LoRA step with PEFT",
            x=0.01,
            ha="left",
            weight="bold",
            fontsize=13,
        )
        for axes, machine in zip(figure.subplots(1, len(MACHINES)), MACHINES, strict=True):
            case, measured = _case(machine)
            words.append(f"{machine.title}: {_draw_steps(axes, machine, case, measured)}")
        figure.supxlabel(
            "Median time of one training step; thin line: quartiles; in brackets: relative to PEFT LoRA.\n"
            "bfloat16, rank 32. PEFT: in stock TRL. doratune: in doratune train.",
            x=0.01,
            ha="left",
            fontsize=8.5,
        )
        return to_svg(figure, sheet, f"Time of one training step. {'. '.join(words)}.")


def forest() -> str:
    """DoRA minus LoRA on every cell of the committed study, as an ``<svg>``."""
    view = view_of(records.study("main"))
    outcome = verdicts.headlines(view)[0].split(". ")[0]
    model, rank = view.record.cells[0].model, view.record.cells[0].rank
    title = f"{outcome}\n{model}, rank {rank}, {view.seeds}; points of accuracy, 95 % interval"
    return forest_plot(view.pairs[0], view, Sheet("forest", WIDE), title)


def seeds() -> str:
    """DoRA minus LoRA by seed and by all, at the original study's rates and at one, as an ``<svg>``."""
    found = [records.study(name) for name in ("same-rate", "paper-rates")]
    cells = [cell for record in found for cell in record.cells]
    index = METHOD_SERIES["dora"]
    sheet, words = Sheet("seeds", WIDE), []
    with drawing(sheet):
        figure, axes = new_figure(sheet, 1.4 + 0.6 * len(cells))
        for place, cell in enumerate(cells):
            one = cell.differences[0]
            label = f"{cell.format}, {_rates(cell)}{', no verdict' if cell.tells_nothing else ''}"
            whisker(axes, place, one.points, one.interval, index, "D", PAPER)
            for single in one.seeds:
                fill = colour(index) if single.p_value < 0.05 else PAPER
                look = {"marker": "o", "markersize": 6, "markerfacecolor": fill, "clip_on": False}
                axes.plot([single.points], [place + 0.22], color=colour(index), linestyle="none", **look)
            figures = f"{numbers.signed(one.points)}  ({numbers.signed_interval(one.interval)})"
            line_label(axes, place, label, figures)
            alone = ", ".join(numbers.signed(single.points) for single in one.seeds)
            words.append(f"{label}: {figures}, single seeds {alone}")
        axes.axvline(0, color=TEXT, linewidth=1, linestyle=(0, (2, 2)), zorder=0.5)
        axes.set(ylim=(len(cells) - 0.4, -0.6), yticks=[])
        axes.set_xlabel(
            "points of accuracy, DoRA − LoRA. Diamond: all seeds, 95 % interval. "
            "Circles: each seed alone, filled where its p is below 5 %"
        )
        dotted(axes)
        axes.set_title(
            "What one seed would have said: ARC-Easy, SmolLM2-135M", loc="left", weight="bold", fontsize=11
        )
        return to_svg(figure, sheet, f"DoRA minus LoRA. {'. '.join(words)}.")


def ranks() -> str:
    """Accuracy of LoRA and DoRA against the rank, as an ``<svg>``."""
    view = view_of(records.study("ranks"))
    (one,) = crossed(view)
    return crossed_plot(one, view, Sheet("ranks", WIDE))


def methods() -> str:
    """Accuracy against training time, as an ``<svg>``, of the methods that end above the base model."""
    view = view_of(records.study("methods"))
    (named,) = view.cells
    trained = [arm for arm in named.cell.arms if arm.mean >= named.cell.base.accuracy]
    shown = replace(named, cell=named.cell.model_copy(update={"arms": trained}))
    drawn = cost_plot(shown, TIME, view, Sheet("methods", WIDE))
    assert drawn is not None, "no two methods whose time is known"
    return drawn


DRAWN: dict[str, Callable[[], str]] = {
    "step-time": step_time,
    "forest": forest,
    "seeds": seeds,
    "ranks": ranks,
    "methods": methods,
}


def _rates(cell: StudyCell) -> str:
    """At which rates the arms of a cell were trained."""
    rates = {arm.name: numbers.learning_rate(arm.learning_rate) for arm in cell.arms}
    if len(set(rates.values())) == 1:
        return f"both at {next(iter(rates.values()))}"
    return ", ".join(f"{arm_name(name)} at {rate}" for name, rate in rates.items())


def files_of(name: str) -> dict[str, str]:
    """The two files of a drawn picture: their names in docs/pictures and their content."""
    element = DRAWN[name]()
    return {f"{name}.svg": as_file(element, "light"), f"{name}-dark.svg": as_file(element, "dark")}


def _case(machine: Machine) -> tuple[dict[str, Any], dict[str, Any]]:
    """The case and, by provider, what was measured."""
    record = json.loads((RESULTS / machine.record).read_text(encoding="utf-8"))
    result = next(one for one in record["results"] if one["case"]["name"] == machine.case)
    return result["case"], {one["provider"]: one for one in result["providers"]}


def _draw_steps(axes: Any, machine: Machine, case: dict[str, Any], measured: dict[str, Any]) -> str:
    unit, size = machine.unit
    told = []
    longest = max(measured[one]["milliseconds"]["upper_quartile"] for one in PROVIDERS)
    for place, (provider, name) in enumerate(PROVIDERS.items()):
        times = measured[provider]["milliseconds"]
        ratio = measured[provider]["ratios"]["time"]["peft-lora"]
        method = "dora" if provider.endswith("dora") else "lora"
        alpha = PALE if provider.startswith("peft") else 1
        axes.barh(place, times["median"], height=0.62, color=colour(METHOD_SERIES[method]), alpha=alpha)
        axes.plot([times["lower_quartile"], times["upper_quartile"]], [place] * 2, color=TEXT, linewidth=1)
        shown = f"{times['median'] / size:,.{0 if size == 1 else 1}f} {unit}"
        end = max(times["median"], times["upper_quartile"]) + 0.02 * longest
        weight = "bold" if provider == "doratune-dora" else "normal"
        axes.text(end, place, f"{shown} ({ratio:.2f}×)", va="center", weight=weight)
        told.append(f"{name} {shown}, {ratio:.2f} times PEFT LoRA")
    rounds = {measured[one]["milliseconds"]["count"] for one in PROVIDERS}
    axes.set_title(machine.title, loc="left", fontsize=10.5, weight="bold", pad=16)
    batch = f"{case['rows']} rows of {case['tokens']} tokens, {max(rounds)} steps each"
    axes.text(0, 1.03, batch, transform=axes.transAxes, fontsize=8.5)
    axes.set_yticks(range(len(PROVIDERS)), list(PROVIDERS.values()))
    axes.set(xlim=(0, 1.42 * longest), xticks=[])
    axes.invert_yaxis()
    axes.tick_params(axis="y", length=0)
    axes.spines["bottom"].set_visible(False)
    return "; ".join(told)


def demo_report(folder: Path) -> bytes:
    """The first screen of a report as a PNG of few colours.

    Raises:
        InputError: There is no report in the folder, or no Chromium on this machine.
    """
    from PIL import Image

    page = folder / HTML_NAME
    if not page.is_file():
        fix = "doratune compare --preset demo --output FOLDER"
        raise InputError("there is no report", where=str(page), fix=fix)
    browser = shutil.which("chromium") or shutil.which("google-chrome")
    if browser is None:
        raise InputError("no Chromium was found", expected="chromium or google-chrome on the PATH")
    width, height = SCREEN
    with tempfile.TemporaryDirectory() as scratch:
        shot = Path(scratch) / "shot.png"
        flags = [
            "--headless=new",
            "--no-sandbox",
            "--disable-gpu",
            "--hide-scrollbars",
            "--force-device-scale-factor=2",
        ]
        light = "--blink-settings=preferredColorScheme=1"
        size = [f"--window-size={width},{height}", f"--screenshot={shot}"]
        subprocess.run(
            [browser, *flags, light, *size, page.resolve().as_uri()],
            check=True,
            timeout=120,
            capture_output=True,
        )
        picture = Image.open(shot).convert("RGB").quantize(64)
    buffer = io.BytesIO()
    picture.save(buffer, "PNG", optimize=True)
    return buffer.getvalue()


def main() -> None:
    """Write the picture that is asked for."""
    layout = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=layout)
    verbs = parser.add_subparsers(dest="picture", required=True)
    for name in DRAWN:
        verbs.add_parser(name)
    verbs.add_parser("demo-report").add_argument("folder", type=Path)
    asked = parser.parse_args()
    PICTURES.mkdir(parents=True, exist_ok=True)
    if asked.picture == "demo-report":
        (PICTURES / "demo-report.png").write_bytes(demo_report(asked.folder))
        return
    for name, content in files_of(asked.picture).items():
        (PICTURES / name).write_text(content, encoding="utf-8")


if __name__ == "__main__":
    main()
