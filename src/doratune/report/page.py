"""A study as a page with its sections in order. A section appears only if the record has content for it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import yaml

from doratune.methods.find import title_of
from doratune.records.analysis import AnalysisRecord, RunAnalysis
from doratune.records.base import Setting
from doratune.records.study import StudyRecord, arm_name
from doratune.report import (
    decomposition,
    decomposition_plots,
    fronts,
    measured,
    numbers,
    paper,
    search,
    tables,
    verdicts,
)
from doratune.report.blocks import (
    Block,
    Bullets,
    Code,
    Facts,
    Figure,
    Figures,
    Heading,
    Page,
    Section,
    Table,
    Text,
    Verdicts,
)
from doratune.report.cautions import cautions
from doratune.report.figures import Sheet
from doratune.report.plots import accuracy, cost, crossed, differences, kept, lines, loss, rates
from doratune.report.view import Training, View, capitalised, view_of

MARKS_NOTE = (
    "A filled mark is a clear difference, a hollow one is not; a diamond is a mean over several. Grey: "
    "neither is shown to beat a guess or always giving the most frequent answer."
)
SMOOTHED_NOTE = (
    "The faint line is the loss as logged, the strong one its running mean over a twentieth of all points."
)
APART_NOTE = "The lower panel is the difference from the arm whose line is broad and pale."
BAND_NOTE = (
    "Each line is a running mean over a twentieth of all points, averaged over the seeds. The band spans the "
    "seeds."
)


def page_of(record: StudyRecord, analyses: Sequence[AnalysisRecord] = ()) -> Page:
    """The whole page.

    Args:
        record: What to show.
        analyses: How the weights moved in the study's runs.
    """
    view = view_of(record)
    sections = [Section("verdict", "Result", outcome_blocks(view))]
    if view.cells:
        sections.append(Section("accuracy", "Accuracy", _accuracy(view)))
    if measured.has_measures(view):
        sections.append(Section("measures", "More measures", _measures(view)))
    if view.pairs and not view.simple:
        sections.append(Section("differences", "Differences", _differences(view)))
    if view.searched or view.rates_differ:
        sections.append(Section("rates", "Learning rates", _rates(view)))
    forgotten = measured.forgetting_table(view.record)
    if forgotten:
        sections.append(Section("forgetting", "Forgetting", _forgetting(view, forgotten)))
    taken = tables.cost_table(view)
    if taken:
        sections.append(Section("training", "Training and its cost", _training(view, taken)))
    if analyses:
        sections.append(Section("weights", "How the weights moved", _weights(analyses)))
    sections.append(Section("settings", "Settings", _settings(view)))
    sections.append(Section("environment", "Environment", _environment(record)))
    if record.pending:
        sections.append(Section("pending", "Still to be run", [Bullets(record.pending)]))
    sections.append(Section("repeat", "Reproduce", [Code(record.reproduce)]))
    return Page(record.title, record.question, record.environment.doratune, sections)


def outcome_blocks(view: View) -> list[Block]:
    """The answer in words, and the warnings needed to judge it."""
    unfinished = _unfinished(view.record)
    blocks: list[Block] = [Text(unfinished, "note")] if unfinished else []
    blocks += [Text(line, "headline") for line in verdicts.headlines(view)]
    cards = verdicts.cards(view)
    if view.pairs:
        blocks += [Verdicts(cards), Text(verdicts.test_note(view), "aside")]
    else:
        blocks.append(Verdicts(cards) if cards else Text(verdicts.no_pair(view.record)))
    sentence = tables.cost_sentence(view)
    blocks += [Text(sentence)] if sentence else []
    ties = tables.tie_note(view)
    below = verdicts.below_base_elsewhere(view)
    notes = [*below, *cautions(view), *view.record.notes, *([ties] if ties else [])]
    return blocks + [Text(note, "note") for note in notes]


def _accuracy(view: View) -> list[Block]:
    draw = accuracy.bar_plot if view.simple else accuracy.dot_plot
    shown = [
        _Drawing(named.label, f"accuracy{place}", partial(draw, named, view), named.cell.sample)
        for place, named in enumerate(view.cells)
        if named.cell.arms or (view.simple and named.cell.base)
    ]
    blocks: list[Block] = [
        tables.accuracy_table(view),
        Text(f"{tables.accuracy_note(view)} {tables.ways(view)}", "aside"),
        _figures(shown),
        *_crossed(view),
    ]
    if paper.paper_cells(view):
        blocks += [Heading("Compared with the paper"), paper.paper_table(view)]
        blocks += [Text(note, "aside") for note in paper.accuracy_notes(view)]
    return blocks


def _crossed(view: View) -> list[Block]:
    """Accuracy against the settings that the study crosses; nothing without any."""
    shown = [
        _Drawing(one.label, f"crossed{place}", partial(crossed.crossed_plot, one, view))
        for place, one in enumerate(crossed.crossed(view))
    ]
    if not shown:
        return []
    return [
        Heading("Accuracy against what was varied"),
        _figures(shown, f"{crossed.NOTE} {_panel_note(view)}".rstrip()),
    ]


def _measures(view: View) -> list[Block]:
    return [measured.measure_table(view), Text(measured.MEASURE_NOTE, "aside")]


def _differences(view: View) -> list[Block]:
    shown = [
        _Drawing(pair.name, f"forest{place}", partial(differences.forest_plot, pair, view))
        for place, pair in enumerate(view.pairs)
    ]
    blocks: list[Block] = [
        _figures(shown, MARKS_NOTE),
        verdicts.difference_table(view),
        *_same_rate(view),
        Heading("Seed by seed"),
        verdicts.seed_table(view),
    ]
    needed = verdicts.needed_table(view)
    if needed:
        blocks += [
            Heading("How large the study would have to be"),
            needed,
            Text(verdicts.NEEDED_NOTE, "aside"),
        ]
    return blocks


def _same_rate(view: View) -> list[Block]:
    """What the methods do at one rate, or that there is no such rate; nothing without a search."""
    table = search.same_rate_table(view)
    if table is not None:
        return [table, Text(search.same_rate_note(view), "aside")]
    return [Text(search.NO_SAME_RATE, "aside")] if view.searched else []


def _rates(view: View) -> list[Block]:
    note = _panel_note(view)
    figures = _per_training(view, "Validation accuracy", "search", rates.search_plot, note)
    return [figures, search.rate_table(view), Text(search.rate_note(view), "aside")]


def _forgetting(view: View, table: Table) -> list[Block]:
    shown = [
        _Drawing(one.label, f"kept{place}", partial(kept.kept_plot, one, view))
        for place, one in enumerate(kept.kept(view))
    ]
    return [_figures(shown, kept.NOTE), table, Text(measured.forgetting_note(view.record), "aside")]


def _training(view: View, taken: Table) -> list[Block]:
    points = max(len(run.curve) for one in view.trainings for arm in one.arms for run in arm.runs)
    single = SMOOTHED_NOTE if loss.window(points) > 1 else ""
    below = any(len(one.arms) > 1 and not lines.apart(one.arms) for one in view.trainings)
    told = [single if view.one_seed else BAND_NOTE, APART_NOTE if below else "", _panel_note(view)]
    note = " ".join(filter(None, told))
    return [
        _per_training(view, "Training loss", "loss", loss.loss_plot, note),
        taken,
        Text(f"Times and memory: {tables.cost_note(view)}. {tables.INFERENCE_NOTE}", "aside"),
        *_fronts(view),
    ]


def _fronts(view: View) -> list[Block]:
    """What accuracy costs; nothing on a simple page, where the table is enough."""
    told = [] if view.simple else fronts.front_sentences(view)
    if not told:
        return []
    shown = [
        _Drawing(f"{named.label}: {one.name}", f"cost{place}-{at}", partial(cost.cost_plot, named, one, view))
        for place, named in enumerate(view.cells)
        for at, one in enumerate(fronts.costs_of(view))
    ]
    return [
        Heading("What accuracy costs"),
        _figures(shown, fronts.MARKS_NOTE),
        Bullets(told),
        Text(fronts.NOTE, "aside"),
    ]


def _panel_note(view: View) -> str:
    """What the panels of many arms have in common; empty if no training has so many."""
    return next((note for one in view.trainings if (note := lines.note_of(one.arms))), "")


def _weights(analyses: Sequence[AnalysisRecord]) -> list[Block]:
    blocks: list[Block] = [
        Bullets([line for one in analyses for line in decomposition.correlation_sentences(one)])
    ]
    for place, one in enumerate(analyses):
        changes = _per_run(one, f"change{place}", decomposition_plots.change_plot, decomposition.CHANGE_MARKS)
        gains = _per_run(one, f"gain{place}", decomposition_plots.gain_plot, decomposition.GAIN_NOTE)
        blocks += [
            Heading(one.model),
            changes,
            decomposition.correlation_table(one),
            Text(f"{decomposition.CORRELATION_NOTE} {decomposition.sources(one)}", "aside"),
            gains,
        ]
    blocks.append(Text(decomposition.CHANGE_NOTE, "aside"))
    return [*blocks, Code("\n".join(dict.fromkeys(one.reproduce for one in analyses)))]


def _settings(view: View) -> list[Block]:
    differing = _differing_facts(view)
    apart: list[Block] = [Heading("What differs"), Facts(differing)] if differing else []
    same = [Heading("The same everywhere")] if differing else []
    blocks: list[Block] = [*apart, *same, Facts([*_setting_facts(view.record), *_test_facts(view)])]
    plan = _plan_text(view.record)
    if plan and not view.simple:
        blocks += [Heading("The plan"), Code(plan)]
    if view.cells:
        blocks += [Heading("Data"), tables.data_table(view)]
        blocks += [Text(note, "aside") for note in tables.data_notes(view)]
    if view.cells and not view.simple:
        blocks += [Heading("Runs"), tables.run_table(view)]
    return blocks


def _environment(record: StudyRecord) -> list[Block]:
    note = environment_note(record)
    return [*([Text(note, "note")] if note else []), Facts(_environment_facts(record))]


@dataclass(frozen=True)
class _Drawing:
    """A figure that has not been drawn yet.

    Attributes:
        label: Its caption.
        name: Prefix of the ids inside, unique in the page.
        draw: Draws it on a sheet; returns None if there is nothing to draw.
        sample: Whether it shows a built-in sample.
    """

    label: str
    name: str
    draw: Callable[[Sheet], str | None]
    sample: bool = False


def _figures(shown: Sequence[_Drawing], note: str = "") -> Figures:
    """The figures with something to draw; a single one is also drawn at the width of the page."""

    def drawn() -> list[Figure]:
        found = [(one, svg) for one in shown if (svg := one.draw(Sheet(one.name)))]
        alone = len(found) == 1
        return [
            Figure(
                one.label,
                svg,
                one.sample,
                wide=(one.draw(Sheet(one.name).wide()) or "") if alone else "",
            )
            for one, svg in found
        ]

    return Figures(drawn, note)


def _per_training(
    view: View, title: str, name: str, draw: Callable[[Training, View, Sheet], str | None], note: str = ""
) -> Figures:
    """One figure for each training that has something to draw."""
    shown = [
        _Drawing(one.label or title, f"{name}{place}", partial(draw, one, view))
        for place, one in enumerate(view.trainings)
    ]
    return _figures(shown, note)


def _per_run(
    analysis: AnalysisRecord, name: str, draw: Callable[[RunAnalysis, Sheet], str | None], note: str
) -> Figures:
    """One figure for each analysed run that has something to draw."""
    shown = [
        _Drawing(f"{capitalised(title_of(run.method))} ({run.name})", f"{name}-{place}", partial(draw, run))
        for place, run in enumerate(analysis.runs)
    ]
    return _figures(shown, note)


def _setting_facts(record: StudyRecord) -> list[tuple[str, str]]:
    """The settings that all runs share, with names in words, without unset ones."""
    return [
        (name.replace("_", " "), _value(value))
        for name, value in record.settings.items()
        if value is not None
    ]


def _differing_facts(view: View) -> list[tuple[str, str]]:
    """Everything but the method that differs between arms or cells."""
    known = view.record.differing
    facts = [
        (
            key.replace("_", " "),
            ", ".join(f"{arm_name(arm)} {_value(value)}" for arm, value in values.items()),
        )
        for key, values in known.items()
    ]
    if view.rates_differ and "learning_rate" not in known:
        facts.insert(0, ("learning rate", search.rates_in_words(view)))
    engines = {arm.name: arm.engine for one in view.cells for arm in one.cell.arms if arm.engine}
    if len(set(engines.values())) > 1:
        facts.append(("engine", ", ".join(f"{arm_name(arm)} {engine}" for arm, engine in engines.items())))
    return facts + [(fact, " and ".join(values)) for fact, values in tables.varied(view) if len(values) > 1]


def _test_facts(view: View) -> list[tuple[str, str]]:
    """The test rows behind the results, and how many of the file's rows they are."""
    facts: dict[str, dict[str, str]] = {}  # by task and content, the label of the first cell that has it
    for named in view.cells:
        test, rows = named.cell.test, named.cell.rows
        counted = f"all {rows:,} rows" if rows == test.rows else f"{rows:,} of the {test.rows:,} rows"
        told = f"{counted} of {test.source} ({test.split})"
        facts.setdefault(named.cell.task, {}).setdefault(told, named.label)
    return [
        (f"test rows of {label if len(found) > 1 else task}", told)
        for task, found in facts.items()
        for told, label in found.items()
    ]


def _value(value: Setting) -> str:
    if isinstance(value, list):
        return ", ".join(_value(item) for item in value) if value else "none"
    if value is None:
        return "not set"
    if isinstance(value, bool):
        return "yes" if value else "no"
    return f"{value:g}" if isinstance(value, float) else str(value)


def _environment_facts(record: StudyRecord) -> list[tuple[str, str]]:
    """The machine and the software, unknowns left out."""
    one = record.environment
    facts = [
        ("doratune", one.doratune),
        ("commit", one.git_commit),
        ("processor", f"{one.cpu}, {numbers.counted(one.cores, 'core')}"),
        ("GPU", one.gpu or "none"),
        ("system", one.platform),
        ("Python", one.python),
        ("packages", ", ".join(f"{name} {version}" for name, version in one.packages.items())),
    ]
    return [(name, value) for name, value in facts if value]


def _plan_text(record: StudyRecord) -> str | None:
    """The whole plan as YAML, or None for runs without a plan."""
    if record.plan is None:
        return None
    return yaml.safe_dump(record.plan, sort_keys=False, allow_unicode=True, width=100).rstrip()


def _unfinished(record: StudyRecord) -> str | None:
    """A sentence about missing cells, or None if there are none."""
    if not record.pending:
        return None
    done, left = len(record.cells), len(record.pending)
    verb = "is" if left == 1 else "are"
    return (
        f"This study is not finished: {left} of {done + left} cells {verb} still to be run; what follows is "
        "about the others only."
    )


def environment_note(record: StudyRecord) -> str | None:
    """A sentence if the runs took place in several environments, or None."""
    if record.environments == 1:
        return None
    return (
        f"The runs took place in {record.environments} different environments, so their times and memory "
        "cannot be compared. The last of them is shown."
    )
