"""A merged model's card: base, adapter, data, settings, and the comparison with base and adapter."""

from __future__ import annotations

from pathlib import Path

from doratune.records.run import RunRecord
from doratune.records.serving import MergeRecord
from doratune.serving.check import distances
from doratune.training.card import base_section, section, training_sections


def merged_card(merged: MergeRecord, run: RunRecord | None) -> str:
    """The card.

    Args:
        merged: The record of the merge.
        run: The record of the run that trained the adapter; None for a plain adapter.
    """
    base, name = merged.base, Path(merged.target).name if run is None else run.name
    methods = sorted({one.split()[0] for one in merged.layers} & {"LoRA", "DoRA"})
    head = [
        "---",
        *([f"base_model: {base.name}"] if base.source.startswith("hub ") else []),
        "library_name: transformers",
        "pipeline_tag: text-generation",
        f"tags: [{', '.join([*(one.lower() for one in methods), 'merged', 'doratune'])}]",
        "---",
        "",
        f"# {name}: {base.name} with its {' and '.join(methods) or 'trained'} adapter merged into it",
        "",
        f"Merged with doratune {merged.environment.doratune}; a plain transformers model.",
        "",
    ]
    adapter = [
        ("from", f"`{name}`"),
        ("checksum of its weights", f"`{merged.weights_checksum}`"),
        *((what, f"{count} layers") for what, count in merged.layers.items()),
    ]
    if merged.replaced:
        adapter.append(("brought whole", ", ".join(f"`{one}`" for one in merged.replaced)))
    if merged.untied:
        adapter.append(("no longer shared", ", ".join(f"`{one}`" for one in merged.untied)))
    base_is = "the 4-bit weights of training, dequantised" if merged.dequantised else "as in its files"
    result = [("type", merged.dtype), ("base's weights", base_is)]
    if merged.rounding is not None:
        result.append(("share of the update lost to rounding", f"{merged.rounding.overall:.2g}"))
    result += [(f"from base and adapter: {what}", text) for what, text in distances(merged.check)]
    return "\n".join(
        [
            *head,
            *base_section(base),
            *section("Adapter", ("", ""), adapter),
            *(training_sections(run) if run is not None else []),
            *section("Merged model", ("", ""), result),
            *_loading(),
        ]
    )


def _loading() -> list[str]:
    return [
        "## Load it",
        "",
        "```python",
        "from transformers import AutoModelForCausalLM, AutoTokenizer",
        "",
        'folder = "FOLDER"  # this folder',
        "model = AutoModelForCausalLM.from_pretrained(folder)",
        "tokenizer = AutoTokenizer.from_pretrained(folder)",
        "```",
        "",
    ]
