"""Shows a benchmark's record as a table in the terminal, from 80 columns on."""

from __future__ import annotations

from collections.abc import Sequence

from rich import box
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from doratune.records.bench import (
    BenchRecord,
    CaseResult,
    InferBenchRecord,
    InferCaseResult,
    InferProviderResult,
    ProviderResult,
    Quantity,
    StepBenchRecord,
    StepCaseResult,
    StepProviderResult,
    Verdict,
)

Columns = tuple[tuple[str, Quantity, str], ...]

OP_COLUMNS: Columns = (
    ("÷ floor", "time", "floor"),
    ("÷ LoRA", "time", "peft-lora"),
    ("÷ DoRA", "time", "peft-dora"),
    ("saved\n÷ LoRA", "saved", "peft-lora"),
    ("peak\n÷ LoRA", "peak", "peft-lora"),
    ("peak\n÷ DoRA", "peak", "peft-dora"),
)
GPU_COLUMNS: Columns = (
    ("÷ floor", "time", "floor"),
    ("÷ LoRA", "time", "peft-lora"),
    ("GPU\n÷ floor", "gpu", "floor"),
    ("GPU\n÷ LoRA", "gpu", "peft-lora"),
    ("saved\n÷ LoRA", "saved", "peft-lora"),
    ("peak\n÷ LoRA", "peak", "peft-lora"),
)
STEP_COLUMNS: Columns = (
    ("÷ floor", "time", "floor"),
    ("÷ LoRA", "time", "peft-lora"),
    ("÷ DoRA", "time", "peft-dora"),
    ("peak\n÷ LoRA", "peak", "peft-lora"),
    ("peak\n÷ DoRA", "peak", "peft-dora"),
    ("growth\n÷ LoRA", "growth", "peft-lora"),
)
INFER_COLUMNS: Columns = (
    ("÷ base", "time", "base"),
    ("÷ PEFT's\nLoRA", "time", "peft-lora"),
    ("÷ PEFT's\nDoRA", "time", "peft-dora"),
    ("÷ our\nLoRA", "time", "doratune-lora"),
    ("CPU ÷\nour LoRA", "cpu", "doratune-lora"),
)
NONE = "–"
OP_NOTE = (
    "ms: median time of forward and backward. Ratios are to the frozen layer alone and to PEFT's LoRA and "
    "DoRA; saved is the memory that autograd keeps for backward, peak the memory that calls add. "
    "The target is under its ratio: ✓ met, ✗ not met."
)
GPU_NOTE = "GPU: time without the host's, from calls queued while the GPU was busy."
STEP_NOTE = (
    "ms: median time of one optimizer step. Ratios are to the faster frozen model and to stock TRL with "
    "PEFT's LoRA and DoRA; peak is the most memory of the whole process, growth is the peak minus the memory "
    "held before the first step. "
    "The target is under its ratio: ✓ met, ✗ not met."
)
INFER_NOTE = (
    "Tokens per second, from the median time of one call of generate; ratios are of its time, or of its CPU "
    "time. Kept: tensors that stay between calls, such as cached updates and norms, relative to the base "
    "model's size. "
    "The target is under its ratio: ✓ met, ✗ not met."
)


def bench_renderable(record: BenchRecord) -> Group:
    """The table of all cases, the unavailable providers, and how many targets are met."""
    columns = GPU_COLUMNS if record.case_set == "gpu" else OP_COLUMNS
    table = _empty(columns)
    for result in record.results:
        _add_case(table, result, columns)
        table.add_section()
    parts: list[RenderableType] = [table, Text(OP_NOTE, style="dim")]
    if record.case_set == "gpu":
        parts.append(Text(GPU_NOTE, style="dim"))
    parts += [Text(line, style="yellow") for line in _unavailable(record)]
    return Group(*parts, Text(_score(record.results)))


def step_renderable(record: StepBenchRecord) -> Group:
    """The table of all cases, and how many targets are met."""
    table = _empty(STEP_COLUMNS)
    for result in record.results:
        _add_case(table, result, STEP_COLUMNS)
        table.add_section()
    lines = [Text(line, style="yellow") for line in _unavailable(record)]
    return Group(table, Text(STEP_NOTE, style="dim"), *lines, Text(_score(record.results)))


def infer_renderable(record: InferBenchRecord) -> Group:
    """The table of all cases, and how many targets are met."""
    table = _empty((), first="tokens/s")
    for heading in ("kept", *(heading for heading, _, _ in INFER_COLUMNS)):
        table.add_column(heading, justify="right", no_wrap=True)
    for result in record.results:
        table.add_row(Text(result.case.name, style="bold"))
        for one in result.providers:
            verdicts = [verdict for verdict in result.verdicts if verdict.provider == one.provider]
            cells = [_cell(one, verdicts, quantity, against) for _, quantity, against in INFER_COLUMNS]
            kept = f"{one.kept_bytes / result.base_bytes:.1%}"
            table.add_row(f" {one.provider}", f"{one.tokens_per_second:.1f}", kept, *cells)
        table.add_section()
    lines = [Text(line, style="yellow") for line in _unavailable(record)]
    return Group(table, Text(INFER_NOTE, style="dim"), *lines, Text(_score(record.results)))


def _empty(columns: Columns, first: str = "ms") -> Table:
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0), show_edge=False)
    table.add_column("case\n provider", overflow="fold")
    for heading in (first, *(heading for heading, _, _ in columns)):
        table.add_column(heading, justify="right", no_wrap=True)
    return table


def _add_case(table: Table, result: CaseResult | StepCaseResult, columns: Columns) -> None:
    table.add_row(Text(result.case.name, style="bold"))
    for one in result.providers:
        verdicts = [verdict for verdict in result.verdicts if verdict.provider == one.provider]
        cells = [_cell(one, verdicts, quantity, against) for _, quantity, against in columns]
        table.add_row(f" {one.provider}", _milliseconds(one.milliseconds.median), *cells)
    for missing in result.unavailable:
        table.add_row(f" {missing.provider}", *[NONE] * (len(columns) + 1))


def _milliseconds(value: float) -> str:
    """With two decimals below 100 ms, otherwise none."""
    return f"{value:.2f}" if value < 100 else f"{value:.0f}"


def _cell(
    result: ProviderResult | StepProviderResult | InferProviderResult,
    verdicts: list[Verdict],
    quantity: Quantity,
    against: str,
) -> Text:
    ratio = result.ratios.get(quantity, {}).get(against)
    text = Text(NONE if ratio is None else f"{ratio:.2f}")
    for verdict in verdicts:
        if (verdict.quantity, verdict.against) == (quantity, against):
            mark, style = {True: ("✓", "green"), False: ("✗", "red"), None: ("", "dim")}[verdict.met]
            text.append(f"\n≤{verdict.at_most:.2f}{mark}", style=style)
    return text


def _unavailable(record: BenchRecord | StepBenchRecord | InferBenchRecord) -> list[str]:
    """One line for each provider and reason that was not available."""
    cases: dict[tuple[str, str], list[str]] = {}
    for result in record.results:
        for missing in result.unavailable:
            cases.setdefault((missing.provider, missing.reason), []).append(result.case.name)
    return [
        f"{provider} is not available ({reason}): {', '.join(names)}"
        for (provider, reason), names in cases.items()
    ]


def _score(results: Sequence[CaseResult | StepCaseResult | InferCaseResult]) -> str:
    outcomes = [verdict.met for result in results for verdict in result.verdicts]
    text = f"targets: {outcomes.count(True)} of {len(outcomes)} met, {outcomes.count(False)} not met"
    missing = outcomes.count(None)
    return f"{text}, {missing} not measured." if missing else f"{text}."
