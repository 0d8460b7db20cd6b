"""The model card of a converted adapter: what it was made from, what that left out, and how to load it."""

from __future__ import annotations

from pathlib import Path

from doratune.methods.find import title_of
from doratune.records.files import write_text_atomic
from doratune.records.run import RunRecord
from doratune.records.serving import ConvertRecord
from doratune.serving.check import distances
from doratune.training.card import CARD_NAME, base_section, loading, section, training_sections


def write_card(folder: Path, record: ConvertRecord, run: RunRecord | None) -> None:
    """Write the model card.

    Args:
        folder: The converted adapter's folder, or the folder of an exact conversion.
        record: The conversion's record.
        run: The record of the run that trained the source; None for a plain adapter.
    """
    write_text_atomic(folder / CARD_NAME, converted_card(record, run))


def converted_card(record: ConvertRecord, run: RunRecord | None) -> str:
    """The card; see ``write_card``."""
    base = record.base
    name = Path(record.source).name if run is None else run.name
    before = f"{title_of(record.method)} of rank {record.source_rank}"
    if record.rank is None:
        title = f"{name}: {before}, exactly, as LoRA on a base with its magnitudes"
        about = (
            "`base` is a plain transformers model and `adapter` a plain PEFT LoRA that fits only this base."
        )
    else:
        title, about = f"{name}: LoRA of rank {record.rank}, made from {before}", "A plain PEFT LoRA."
    facts = [("from", f"`{name}`"), ("checksum of its weights", f"`{record.weights_checksum}`")]
    if record.rank is not None:
        facts.append(("left out of ‖ΔW‖", f"{100 * record.left_out:.3g} %"))
    facts += [(f"from the source: {what}", text) for what, text in distances(record.check)]
    facts += [
        (
            f"accuracy on {one.rows:,} rows of {one.task}",
            f"{100 * one.converted:.1f} %; the source {100 * one.source:.1f} %; p = {one.p_value:.3f}",
        )
        for one in record.tasks
    ]
    facts += [("note", note) for note in record.notes]
    return "\n".join(
        [
            "---",
            *([f"base_model: {base.name}"] if base.source.startswith("hub ") else []),
            "library_name: peft",
            "pipeline_tag: text-generation",
            "tags: [lora, doratune]",
            "---",
            "",
            f"# {title}",
            "",
            f"Converted with doratune {record.environment.doratune}. {about}",
            "",
            *section("Conversion", ("", ""), facts),
            *base_section(base),
            *(training_sections(run) if run is not None else []),
            *(loading(base) if record.rank is not None else []),
        ]
    )
