"""What an export wrote, in a few lines and a table."""

from __future__ import annotations

from collections.abc import Iterator

from doratune.byte_size import byte_size
from doratune.records.serving import ExportedGguf
from doratune.report.blocks import Block, Text
from doratune.report.logit_check import logit_table


def export_blocks(written: ExportedGguf) -> Iterator[Block]:
    """Which tensors are in the file, and how far it is from base and adapter."""
    for what, types in {"copied": written.copied, "with the adapter": written.computed}.items():
        yield Text(f"tensors {what}: {', '.join(f'{count} {name}' for name, count in types.items())}")
    yield logit_table({"the file, from base and adapter": written.check.logits})


def export_line(written: ExportedGguf) -> str:
    """Where the file is."""
    return f"written: {written.output} ({byte_size(written.bytes)})"
