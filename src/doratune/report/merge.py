"""What a merge did, in a few lines and a table."""

from __future__ import annotations

from collections.abc import Iterator

from doratune.byte_size import byte_size
from doratune.records.serving import MergeRecord
from doratune.report import numbers
from doratune.report.blocks import Block, Text
from doratune.report.logit_check import logit_table


def merge_blocks(record: MergeRecord) -> Iterator[Block]:
    """What was merged onto what, what rounding took, and how far the result is from base and adapter."""
    parts = [numbers.counted(count, f"{what} layer") for what, count in record.layers.items()]
    if record.replaced:
        parts.append(f"{numbers.counted(len(record.replaced), 'parameter')} replaced")
    if record.untied:
        parts.append(f"{', '.join(record.untied)} no longer shared")
    onto = " (4-bit weights, dequantised)" if record.dequantised else ""
    yield Text(f"merged onto {record.base.name}{onto}: {'; '.join(parts)}; {record.dtype}", "headline")
    if record.rounding is not None and record.dtype != "float32":
        lost = record.rounding
        yield Text(
            f"Rounding to {record.dtype} lost {100 * lost.overall:.2g} % of the update; at most "
            f"{100 * lost.worst:.2g} %, in {lost.parameter}."
        )
    checks = {"merged, from base and adapter": record.check, "merged, from itself rounded once": record.noise}
    if record.base_difference is not None:
        checks["full precision, from 4-bit base"] = record.base_difference
    yield logit_table(checks)


def merge_line(record: MergeRecord) -> str:
    """Where the result is."""
    files = numbers.counted(len(record.files), "file")
    return (
        f"written: {record.output} ({files}, {byte_size(sum(record.files.values()))}, {record.seconds:.0f} s)"
    )
