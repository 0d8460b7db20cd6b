"""The pictures of a study: what is drawn is what the record says, and nothing without its record."""

from __future__ import annotations

import io
import random
from collections.abc import Callable
from itertools import pairwise
from statistics import mean
from types import ModuleType

import pytest
from matplotlib.figure import Figure
from rich.console import Console
from synthetic_measures import measured, with_forgetting
from synthetic_study import study

from doratune.methods.find import method_names
from doratune.records.study import StudyRecord
from doratune.report.figures import MARKERS, Sheet, colour, dash, marker
from doratune.report.fronts import MEMORY, PARAMETERS, TIME, costs_of, front, front_sentences, on_front
from doratune.report.markup import to_markdown
from doratune.report.page import page_of
from doratune.report.plots import cost, crossed, kept, lines, loss, rates
from doratune.report.terminal import print_summary
from doratune.report.view import arm_title, capitalised, series_of, view_of

MANY = (
    "lora",
    "dora",
    "full",
    "rslora",
    "lora-plus",
    "pissa",
    "olora",
    "delora",
    "miss",
    "hira",
    "vera",
    "oft",
)
SIX = MANY[:6]  # more than one panel holds
RANKS = (4, 8, 16, 64)
SHEET = Sheet("x")


@pytest.fixture(scope="module")
def many() -> StudyRecord:
    return study(methods=SIX, ranks=RANKS, tasks=("arc-easy",), tries=2, seeds=2)


@pytest.fixture(scope="module")
def few() -> StudyRecord:
    return with_forgetting(measured(study(tasks=("arc-easy",), seeds=3, tries=3)))


def drawn(
    monkeypatch: pytest.MonkeyPatch, module: ModuleType, draw: Callable[[], object]
) -> tuple[Figure, str]:
    """The figure and its text alternative, before they become SVG."""
    caught: list[tuple[Figure, str]] = []

    def catch(figure: Figure, sheet: Sheet, words: str) -> str:
        caught.append((figure, words))
        return ""

    monkeypatch.setattr(module, "to_svg", catch)
    draw()
    return caught[0]


def points(figure: Figure, panel: int, **look: object) -> list[list[tuple[float, float]]]:
    """The points of the panel's lines that have this look."""
    return [
        list(zip(map(float, line.get_xdata()), map(float, line.get_ydata()), strict=True))
        for line in figure.axes[panel].get_lines()
        if all(getattr(line, f"get_{name}")() == value for name, value in look.items())
    ]


def test_a_panel_of_rates_has_means_seeds_and_choices(
    many: StudyRecord, monkeypatch: pytest.MonkeyPatch
) -> None:
    view = view_of(many)
    training = view.trainings[0]
    figure, words = drawn(monkeypatch, rates, lambda: rates.search_plot(training, view, SHEET))
    assert [axes.get_title("left") for axes in figure.axes if axes.get_visible()] == [
        arm_title(arm.name) for arm in training.arms
    ]
    for panel, arm in enumerate(training.arms):
        every = [(one.learning_rate, 100 * (one.accuracy or 0)) for one in arm.trials]
        tried = sorted({rate for rate, _ in every})
        means = [mean(share for at, share in every if at == rate) for rate in tried]
        *_, line = [one for one in points(figure, panel) if len(one) == len(tried)]
        assert [rate for rate, _ in line] == tried and [y for _, y in line] == pytest.approx(means)
        seeds, chosen = points(figure, panel, linestyle="None")
        assert sorted(seeds) == sorted(every)
        assert sorted(chosen) == [
            (one.learning_rate, 100 * (one.accuracy or 0)) for one in arm.trials if one.chosen
        ]
        (band,) = figure.axes[panel].collections
        low, high = band.get_datalim(figure.axes[panel].transData).intervaly
        assert (low, high) == pytest.approx((min(y for _, y in every), max(y for _, y in every)))
    assert "DoRA chose 1e-4 (5e-5: " in words


def test_many_rates_have_ticks_but_names_only_where_there_is_room() -> None:
    tried = [1.25e-5, 3.13e-5, 5e-5, 1.25e-4, 2e-4, 5e-4, 8e-4, 1.25e-3, 2e-3, 5e-3, 8e-3, 2e-2, 8e-2, 3.2e-1]
    figure = Figure(figsize=(5.2, 3))
    panels = list(figure.subplots(2, 4, sharex=True).flat)
    lines.scale_of(panels, tried, [f"{rate:g}" for rate in tried])
    bottom = panels[-1]
    bottom.set_xlim(tried[0], tried[-1])
    figure.canvas.draw()
    assert list(bottom.get_xticks()) == tried
    centres = [
        (box.x0 + box.x1) / 2
        for label in bottom.get_xticklabels()
        if label.get_text() and (box := label.get_window_extent())
    ]
    height = figure.dpi / 72 * bottom.get_xticklabels()[0].get_fontsize()
    assert len(centres) >= 4 and min(after - one for one, after in pairwise(centres)) > height
    lines.scale_of([bottom], tried[:3], ["a", "b", "c"])
    assert [label.get_text() for label in bottom.get_xticklabels()] == ["a", "b", "c"]


def test_accuracy_against_rank_has_every_mean_and_interval(
    many: StudyRecord, monkeypatch: pytest.MonkeyPatch
) -> None:
    view = view_of(many)
    (one,) = crossed.crossed(view)
    assert (one.axis, one.label) == ("rank", "arc-easy: rank")
    figure, words = drawn(monkeypatch, crossed, lambda: crossed.crossed_plot(one, view, SHEET))
    for panel, name in enumerate(SIX):
        arms = [arm for named in view.cells if (arm := named.arm(name))]
        expected = [(rank, 100 * arm.mean) for rank, arm in zip(RANKS, arms, strict=True)]
        assert expected in points(figure, panel)
        (whiskers,) = figure.axes[panel].collections
        ends = [(float(segment[0][1]), float(segment[1][1])) for segment in whiskers.get_segments()]  # type: ignore[attr-defined]
        assert ends == [pytest.approx([100 * bound for bound in arm.interval]) for arm in arms]
    assert "DoRA 4: " in words


@pytest.mark.parametrize(
    ("field", "values"), [("batch_size", (8, 16)), ("epochs", (1.0, 3.0)), ("training_rows", (500, 2000))]
)
def test_other_settings_are_crossed_too(few: StudyRecord, field: str, values: tuple[float, float]) -> None:
    cells = [few.cells[0].model_copy(update={field: value}) for value in values]
    (one,) = crossed.crossed(view_of(few.model_copy(update={"cells": cells})))
    assert one.axis == field and list(one.arms["lora"]) == list(values)
    elsewhere = [cells[0], cells[1].model_copy(update={"model": "other"})]
    assert crossed.crossed(view_of(few.model_copy(update={"cells": elsewhere}))) == []


def test_each_of_many_losses_has_a_panel(many: StudyRecord, monkeypatch: pytest.MonkeyPatch) -> None:
    view = view_of(many)
    figure, _ = drawn(monkeypatch, loss, lambda: loss.loss_plot(view.trainings[0], view, SHEET))
    assert [len(axes.get_lines()) for axes in figure.axes] == [1] + [2] * (len(SIX) - 1)  # LoRA behind others
    arm = view.trainings[0].arms[1]
    last = mean(mean(value or 0 for _, value in run.curve[-15:]) for run in arm.runs)  # the running mean
    assert points(figure, 1)[-1][-1] == pytest.approx((300, last))


def test_the_front_is_what_nothing_dominates() -> None:
    numbers = random.Random(0)
    for _ in range(200):
        found = [(numbers.randint(1, 6), numbers.randint(1, 6)) for _ in range(numbers.randint(1, 9))]
        for (price, gain), on in zip(found, front(found), strict=True):
            better = [(x, y) for x, y in found if (x < price and y >= gain) or (x <= price and y > gain)]
            assert on == (not better)


def test_cost_marks_are_the_records_and_filled_on_the_front(
    few: StudyRecord, monkeypatch: pytest.MonkeyPatch
) -> None:
    view = view_of(few)
    named = view.cells[0]
    assert costs_of(view) == [TIME, PARAMETERS]
    figure, words = drawn(monkeypatch, cost, lambda: cost.cost_plot(named, TIME, view, SHEET))
    best = {arm.name for arm, _, on in on_front(named, TIME) if on}
    assert best == {"lora", "dora"}  # the cheapest and the most accurate; the others cost more than DoRA
    marks = {line.get_label(): line for line in figure.axes[0].get_lines()}
    for arm in named.cell.arms:
        mark = marks[arm_title(arm.name) if arm.name != "dora-attached-norm" else "DoRA with …ched norm"]
        seconds = sorted(run.training.seconds for run in arm.runs if run.training)[1]
        assert (*mark.get_xdata(), *mark.get_ydata()) == pytest.approx((seconds / 60, 100 * arm.mean))
        assert (mark.get_markerfacecolor() == mark.get_color()) == (arm.name in best)
    assert words.count("on the front") == 2
    (sentence, _) = front_sentences(view)
    assert "LoRA (1 min 41 s, 60.0 %) or DoRA (1 min 53 s, 68.9 %)." in sentence
    for text in (to_markdown(page_of(few)), printed(few)):
        assert sentence in " ".join(text.split())


def test_costs_that_cannot_be_compared_are_left_out(few: StudyRecord) -> None:
    assert costs_of(view_of(few.model_copy(update={"environments": 2}))) == [PARAMETERS]
    parameters = few.cells[0].arms[0].runs[0].parameters
    same = [
        arm.model_copy(
            update={"runs": [run.model_copy(update={"parameters": parameters}) for run in arm.runs]}
        )
        for arm in few.cells[0].arms
    ]
    cells = [few.cells[0].model_copy(update={"arms": same})]
    assert costs_of(view_of(few.model_copy(update={"cells": cells}))) == [TIME, MEMORY], (
        "equally many parameters are no question"
    )
    nothing = few.cells[0].model_copy(update={"tells_nothing": "a reason"})
    assert front_sentences(view_of(few.model_copy(update={"cells": [nothing]}))) == []


def test_what_is_kept_is_drawn_against_accuracy(few: StudyRecord, monkeypatch: pytest.MonkeyPatch) -> None:
    view = view_of(few)
    task, text = kept.kept(view)
    for one, size in ((task, 100), (text, 1)):
        figure, _ = drawn(monkeypatch, kept, lambda one=one: kept.kept_plot(one, view, SHEET))
        marks = [line for line in figure.axes[0].get_lines() if line.get_linestyle() == "None"]
        assert [(*line.get_xdata(), *line.get_ydata()) for line in marks] == [
            pytest.approx((100 * arm.mean, size * found.value.mean))
            for arm, found in zip(few.cells[0].arms, one.entry.arms, strict=True)
        ]
        low, high = figure.axes[0].get_ylim()
        assert (low < high) == (one is task), "less loss is further up"
    nothing = few.cells[0].model_copy(update={"tells_nothing": "a reason"})
    other = few.cells[0].model_copy(update={"rank": 8})
    for cell in (nothing, other):
        assert kept.kept(view_of(few.model_copy(update={"cells": [cell]}))) == []


def test_what_a_mix_keeps_is_against_the_mean_of_its_tasks(
    few: StudyRecord, monkeypatch: pytest.MonkeyPatch
) -> None:
    (cell,) = few.cells
    assert cell.train is not None
    mix = cell.train.model_copy(update={"task": None, "parts": {"a": 1, "b": 1}})
    higher = [arm.model_copy(update={"mean": arm.mean + 0.1}) for arm in cell.arms]
    cells = [
        cell.model_copy(update={"task": "a", "train": mix}),
        cell.model_copy(update={"task": "b", "train": mix, "arms": higher}),
    ]
    entries = [one.model_copy(update={"trained_on": "mixed"}) for one in few.forgetting]
    view = view_of(few.model_copy(update={"cells": cells, "forgetting": entries}))
    one, _ = kept.kept(view)
    figure, words = drawn(monkeypatch, kept, lambda: kept.kept_plot(one, view, SHEET))
    first = next(line for line in figure.axes[0].get_lines() if line.get_linestyle() == "None")
    assert first.get_xdata() == pytest.approx([100 * (cell.arms[0].mean + 0.05)])
    assert "2 tasks (mean)" in words


def test_nothing_is_drawn_without_a_record_of_it() -> None:
    record = study(methods=("lora",), tasks=("arc-easy",))
    view = view_of(record)
    assert not crossed.crossed(view) and not kept.kept(view) and not front_sentences(view)
    page = to_markdown(page_of(record))
    assert "was varied" not in page and "What accuracy costs" not in page and "Forgetting" not in page


def test_all_shipped_methods_look_different() -> None:
    shipped = series_of(method_names())
    assert len(shipped) >= 18
    for looks in (
        [(colour(one), marker(one)) for one in shipped.values()],
        [(colour(one), str(dash(one))) for one in shipped.values()],
    ):
        assert len(set(looks)) == len(shipped)
    assert len({marker(one) for one in shipped.values()}) == len(MARKERS) - 1, "all shapes are in use"
    twelve = series_of(MANY)
    assert len({marker(one) for one in twelve.values()}) == len(MANY), "told apart without colour"
    assert capitalised("rsLoRA") == "rsLoRA" and capitalised("full fine-tuning") == "Full fine-tuning"


def test_measures_and_what_is_kept_fit_80_columns(few: StudyRecord, many: StudyRecord) -> None:
    two = with_forgetting(measured(study(tasks=("boolq", "arc-easy"))), ("accuracy", "nll_per_token"))
    for record in (few, two):
        text = printed(record)
        assert max(len(line.rstrip()) for line in text.splitlines()) <= 80
        broken = [
            line for line in text.splitlines() if line.rstrip().endswith(" to") and "  " in line.strip()
        ]
        assert not broken, "an interval is on one line"
        assert " fine-tunin" not in text.replace("fine-tuning", "")
    assert "in the report's page and Markdown" in " ".join(printed(with_forgetting(many)).split())


def printed(record: StudyRecord) -> str:
    file = io.StringIO()
    print_summary(record, Console(file=file, width=80))
    return file.getvalue()
