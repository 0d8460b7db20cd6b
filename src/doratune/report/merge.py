"""What a merge did, in a few lines."""

from __future__ import annotations

from collections.abc import Iterator

from doratune.byte_size import byte_size
from doratune.records.serving import LogitCheck, MergeRecord


def merge_lines(record: MergeRecord) -> Iterator[str]:
    """The lines that the command prints."""
    parts = [f"{count} {what} layer{'s' * (count != 1)}" for what, count in record.layers.items()]
    if record.replaced:
        parts.append(f"{len(record.replaced)} parameter{'s' * (len(record.replaced) != 1)} replaced")
    if record.untied:
        parts.append(f"{', '.join(record.untied)} no longer shared")
    onto = " (4-bit weights, dequantised)" if record.dequantised else ""
    yield f"merged onto {record.base.name}{onto}: {'; '.join(parts)}; {record.dtype}"
    if record.rounding is not None and record.dtype != "float32":
        lost = record.rounding
        yield (
            f"rounding to {record.dtype} lost {100 * lost.overall:.2g} % of the update; at most "
            f"{100 * lost.worst:.2g} %, in {lost.parameter}"
        )
    yield f"compared with base and adapter on {record.check.rows} rows: {_distance(record.check)}"
    yield f"  weights moved by one rounding: {_distance(record.noise)}"
    if record.base_difference is not None:
        yield f"full precision compared with dequantised base: {_distance(record.base_difference)}"
    size = sum(record.files.values())
    count = f"{len(record.files)} file{'s' * (len(record.files) != 1)}"
    yield f"{record.output}: {count}, {byte_size(size)}, in {record.seconds:.0f} s"


def _distance(check: LogitCheck) -> str:
    return (
        f"log-probabilities differ by {check.mean:.2g}, at most {check.largest:.2g}; same most likely token "
        f"at {100 * check.top1:.4g} % of {check.positions} positions; KL {check.kl_mean:.2g}"
    )
