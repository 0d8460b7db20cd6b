"""What an export wrote, in a few lines."""

from __future__ import annotations

from collections.abc import Iterator

from doratune.byte_size import byte_size
from doratune.records.serving import ExportedGguf


def export_lines(written: ExportedGguf) -> Iterator[str]:
    """The lines that the command prints."""
    yield f"written: {written.output} ({byte_size(written.bytes)})"
    for what, types in {"copied": written.copied, "with the adapter": written.computed}.items():
        yield f"tensors {what}: {', '.join(f'{count} {name}' for name, count in types.items())}"
    logits = written.check.logits
    yield (
        f"compared with base plus adapter on {logits.rows} rows: same top token at {logits.top1:.1%} of "
        f"{logits.positions} positions, mean KL divergence {logits.kl_mean:.2g}, largest difference of a "
        f"log-probability {logits.largest:.2g}"
    )
