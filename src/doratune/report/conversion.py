"""The tables and sentences of a conversion into LoRA."""

from __future__ import annotations

import math
from collections.abc import Iterable

from doratune.records.serving import ConvertRecord, LayerShare
from doratune.report import numbers
from doratune.report.blocks import Block, Entry, Table, Text


def conversion_blocks(record: ConvertRecord) -> list[Block]:
    """What was converted into what, what that leaves out, and what it costs."""
    blocks: list[Block] = [Text(_headline(record), "headline")]
    if record.layers:
        blocks += [layer_table(record), Text(LAYER_NOTE, "aside")]
    if record.tried:
        blocks.append(tried_table(record))
    blocks.append(Text(_check(record)))
    if record.tasks:
        blocks += [task_table(record), Text(TASK_NOTE, "aside")]
    blocks += [Text(note, "note") for note in record.notes]
    return blocks


LAYER_NOTE = (
    "The share of ‖ΔW‖, the Frobenius norm of what the adapter changes, that the LoRA leaves out. "
    "convert.json has every layer."
)
TASK_NOTE = (
    "Rows lost : won are those that count more for the adapter and for the conversion; p is McNemar's exact "
    "test on them."
)


def _headline(record: ConvertRecord) -> str:
    before = f"{'DoRA' if record.method == 'dora' else 'LoRA'} of rank {record.source_rank}"
    if record.rank is None:
        return f"{before} as an exact LoRA on a base with its magnitudes"
    best = ""
    if record.least < 0.99 * record.left_out:
        best = f" (the best LoRA of this rank: at least {numbers.percent(record.least, 2)})"
    return (
        f"{before} as LoRA of rank {record.rank}: {numbers.percent(record.left_out, 2)} of ‖ΔW‖ is left out"
        f"{best}"
    )


def _check(record: ConvertRecord) -> str:
    check = record.check
    return (
        f"On {numbers.counted(check.positions, 'token')} of check rows: KL {check.kl_mean:.2g} on average, "
        f"{check.kl_largest:.2g} at most; the same most likely token on {numbers.percent(check.top1)}."
    )


def layer_table(record: ConvertRecord) -> Table:
    """A row for each kind of layer, and its worst layer."""
    kinds: dict[str, list[LayerShare]] = {}
    for one in record.layers:
        kinds.setdefault(one.layer.rpartition(".")[2], []).append(one)
    rows = []
    for kind, layers in kinds.items():
        worst = max(layers, key=lambda one: one.left_out)
        rows.append(
            [
                Entry(kind, numbers.counted(len(layers), "layer")),
                Entry(numbers.percent(_together(layers), 2)),
                Entry(numbers.percent(worst.left_out, 2), worst.layer),
            ]
        )
    return Table("", [Entry("Layers"), Entry("Left out"), Entry("Most in one layer")], rows)


def _together(layers: Iterable[LayerShare]) -> float:
    layers = list(layers)
    whole = math.hypot(*(one.norm for one in layers))
    return math.hypot(*(one.norm * one.left_out for one in layers)) / whole if whole else 0.0


def tried_table(record: ConvertRecord) -> Table:
    """The ranks that were tried."""
    rows = [
        [Entry(str(one.rank)), Entry(numbers.percent(one.left_out, 2)), Entry(f"{one.kl:.2g}")]
        for one in record.tried
    ]
    return Table("", [Entry("Rank tried"), Entry("Left out"), Entry("Mean KL")], rows)


def task_table(record: ConvertRecord) -> Table:
    """The accuracies of both."""
    rows = [
        [
            Entry(one.task, f"{one.format}, {numbers.counted(one.rows, 'row')}"),
            Entry(numbers.percent(one.source), numbers.interval(one.source_interval)),
            Entry(numbers.percent(one.converted), numbers.interval(one.converted_interval)),
            Entry(numbers.p_value(one.p_value), f"{one.only_source} : {one.only_converted}"),
        ]
        for one in record.tasks
    ]
    columns = [Entry("Task"), Entry("Adapter"), Entry("Conversion"), Entry("p", "rows lost : won")]
    return Table("", columns, rows)
