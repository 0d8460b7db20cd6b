"""Training curves and accuracy bars as SVG that takes its colours and its font from the page around it.

matplotlib draws with stand-in colours, which are then replaced by CSS variables, so that one figure serves
light, dark and print. Text stays text. The figures are small on purpose: on a phone they can still be read.
"""

from __future__ import annotations

import io
import re
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from doratune.records.comparison import Arm, Comparison, TaskResult
from doratune.report import numbers

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

WIDTH = 4.0  # inches of 72 points, so 288 units: a little less than a phone is wide
SERIES = 7  # colours in the style sheet, --s0 to --s6

TEXT, GRID, PAPER = "#000001", "#000002", "#000003"
STAND_INS = {TEXT: "var(--text)", GRID: "var(--grid)", PAPER: "var(--paper)"} | {
    f"#00010{index}": f"var(--s{index})" for index in range(SERIES)
}
DASHES = ("solid", "solid", (0, (3, 1.5)), (0, (1, 1)), (0, (6, 1, 1, 1)), (0, (3, 1)), (0, (8, 2)))

RC: dict[Any, Any] = {
    "svg.fonttype": "none",
    "text.parse_math": False,
    "font.size": 9.5,
    "text.color": TEXT,
    "axes.labelcolor": TEXT,
    "axes.edgecolor": GRID,
    "axes.facecolor": "none",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "xtick.color": GRID,
    "ytick.color": GRID,
    "xtick.labelcolor": TEXT,
    "ytick.labelcolor": TEXT,
    "figure.facecolor": "none",
}


def series(arms: Sequence[Arm]) -> dict[str, int]:
    """The colour of each arm by name: base, LoRA and DoRA keep theirs, further runs take the rest in turn."""
    taken: dict[str, int] = {}
    for index, method in enumerate(("base", "lora", "dora")):
        first = next((arm for arm in arms if arm.method == method), None)
        if first:
            taken[first.name] = index
    others = (arm.name for arm in arms if arm.name not in taken)
    extra = {name: 3 + place % (SERIES - 3) for place, name in enumerate(others)}
    return taken | extra


def accuracy_plot(task: TaskResult, comparison: Comparison, name: str) -> str:
    """Bars of accuracy with 95 % intervals and a line at chance, as an ``<svg>`` element.

    Args:
        task: The task to draw.
        comparison: Where the arms and their colours come from.
        name: Prefix of the ids inside, unique in the page.
    """
    import matplotlib as mpl

    shown = [(arm.name, task.arms[arm.name]) for arm in comparison.arms if arm.name in task.arms]
    colours = series(comparison.arms)
    with mpl.rc_context(RC), mpl.rc_context({"svg.hashsalt": name}):
        figure, axes = _figure(0.62 + 0.52 * len(shown))
        for place, (arm, result) in enumerate(shown):
            low, high = (100 * bound for bound in result.interval)
            value = 100 * result.accuracy
            axes.barh(place, value, height=0.36, color=colour(colours[arm]))
            axes.errorbar(
                value, place, xerr=[[value - low], [high - value]], color=TEXT, capsize=3, linewidth=1.2
            )
            axes.text(0, place - 0.3, _short(arm), va="bottom", weight="bold")
            label = f"{numbers.percent(result.accuracy)}  ({numbers.interval(result.interval)})"
            axes.text(100, place - 0.3, label, va="bottom", ha="right")
        chance = 100 * task.chance
        axes.axvline(chance, color=TEXT, linewidth=1, linestyle=(0, (2, 2)))
        axes.set(
            xlim=(0, 100), ylim=(len(shown) - 0.65, -0.85), yticks=[], xlabel="accuracy in %; dotted: chance"
        )
        axes.spines["left"].set_visible(False)
        return svg(figure, name, _accuracy_words(task, comparison))


def _accuracy_words(task: TaskResult, comparison: Comparison) -> str:
    """What the bars show, for those who do not see them."""
    bars = [
        f"{arm.name} {numbers.percent(result.accuracy)}, interval {numbers.interval(result.interval)}"
        for arm in comparison.arms
        if (result := task.arms.get(arm.name))
    ]
    return f"Accuracy on {task.task}: {'; '.join(bars)}; chance {numbers.percent(task.chance)}."


def loss_plot(comparison: Comparison, name: str) -> str | None:
    """Training loss over steps, one line per trained arm, as an ``<svg>`` element; None without a curve.

    A faint line is the loss as it was logged, the strong one its running mean.
    """
    import matplotlib as mpl

    curves = [arm for arm in comparison.arms if any(loss is not None for _, loss in arm.curve)]
    if not curves:
        return None
    colours = series(comparison.arms)
    with mpl.rc_context(RC), mpl.rc_context({"svg.hashsalt": name}):
        figure, axes = _figure(2.9)
        for arm in curves:
            _draw_curve(axes, arm, colours[arm.name])
        axes.set(xlabel="step", ylabel="training loss")
        axes.grid(visible=True, axis="y", color=GRID, linewidth=0.6, alpha=0.6)
        axes.legend(frameon=False, loc="upper right", handlelength=3)
        ends = [f"{arm.name} from {_ends(arm)}" for arm in curves]
        return svg(figure, name, f"Training loss over steps: {'; '.join(ends)}.")


def window(arm: Arm) -> int:
    """How many points of the arm's curve the running mean takes in; 1 means that it is drawn as it is."""
    return max(1, len(arm.curve) // 20)


def _draw_curve(axes: Axes, arm: Arm, index: int) -> None:
    import numpy as np

    steps = [step for step, _ in arm.curve]
    losses = np.array([np.nan if loss is None else loss for _, loss in arm.curve])
    width = window(arm)
    counts = np.minimum(np.arange(1, len(losses) + 1), width)
    means = np.convolve(losses, np.ones(width))[: len(losses)] / counts
    if width > 1:
        axes.plot(steps, losses, color=colour(index), linewidth=0.8, alpha=0.35)
    axes.plot(
        steps,
        means,
        color=colour(index),
        linewidth=1.8,
        linestyle=DASHES[index],
        label=_short(arm.name),
        marker="o" if len(steps) == 1 else None,
    )


def _ends(arm: Arm) -> str:
    losses = [loss for _, loss in arm.curve if loss is not None]
    return f"{losses[0]:.3f} to {losses[-1]:.3f}"


def _short(name: str) -> str:
    """A name that fits beside its numbers; the table has it in full."""
    return name if len(name) <= 20 else f"{name[:10]}…{name[-9:]}"


def colour(index: int) -> str:
    """The stand-in for a colour of the style sheet."""
    return f"#00010{index}"


def _figure(height: float) -> tuple[Figure, Axes]:
    """A figure of its own, outside pyplot, which keeps global state."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(WIDTH, height), layout="constrained")
    return figure, figure.add_subplot()


def svg(figure: Figure, name: str, words: str) -> str:
    """The figure as an element to be put into a page: no prolog, own ids, the page's colours."""
    from html import escape

    buffer = io.StringIO()
    figure.savefig(buffer, format="svg", metadata=dict.fromkeys(("Creator", "Date", "Format", "Type")))
    drawn = buffer.getvalue()
    drawn = drawn[drawn.index("<svg") :].strip()
    drawn = re.sub(r"<metadata>.*?</metadata>", "", drawn, flags=re.DOTALL)
    drawn = re.sub(r'(\bid="|href="#|url\(#)', rf"\g<1>{name}-", drawn)
    for stand_in, colour in STAND_INS.items():
        drawn = drawn.replace(stand_in, colour)
    view = re.search(r'viewBox="[^"]+"', drawn)
    if view is None:
        raise RuntimeError("matplotlib wrote an SVG without a viewBox")
    inner = drawn[drawn.index(">") + 1 :]
    return f'<svg {view[0]} role="img" aria-label="{escape(words)}">{inner}'
