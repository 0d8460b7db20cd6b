"""An adapter's model card, and a base model's name that is valid on any machine.

PEFT writes the folder that the base was loaded from, which for a built-in model or a GGUF file is in this
machine's cache, and an empty model card.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from doratune.duration import duration
from doratune.methods.find import title_of
from doratune.models.builtin import BUILTIN
from doratune.records.files import write_json_atomic, write_text_atomic
from doratune.records.layout import ADAPTER_CONFIG
from doratune.records.run import ModelRecord, RunRecord, unused_settings
from doratune.records.study import method_of
from doratune.training.config import WARMUP_SHARE

CARD_NAME = "README.md"
SHOWN = (
    *("rank", "alpha", "rslora", "dropout", "targets", "norm_gradient", "engine", "load_in_4bit"),
    *("learning_rate", "schedule", "warmup_steps", "weight_decay", "epochs", "steps", "batch_size", "seed"),
    *("cutoff", "format", "rows", "loss_on"),
)
"""Settings in a card, also of older versions; those that are unset or off are left out."""


def name_base(folder: Path, model: str) -> None:
    """Write the base model's name that doratune resolves on any machine into an adapter's configuration.

    Args:
        folder: The adapter's folder.
        model: The base model as the user named it. A folder or a hub id is already there, written by PEFT.
    """
    path = folder / ADAPTER_CONFIG
    if path.is_file() and (model in BUILTIN or model.endswith(".gguf")):
        values = json.loads(path.read_text(encoding="utf-8"))
        write_json_atomic(path, values | {"base_model_name_or_path": model})


def write_card(folder: Path, record: RunRecord) -> None:
    """Write the model card of an adapter.

    Args:
        folder: The adapter's folder.
        record: The record of the run that trained it.
    """
    write_text_atomic(folder / CARD_NAME, card(record))


def card(record: RunRecord) -> str:
    """The model card: base, data, settings, figures, and how to load the adapter with PEFT."""
    kind, base, training = title_of(method_of(record)), record.model, record.training
    on_hub = base.source.startswith("hub ")
    head = [
        "---",
        *([f"base_model: {base.name}"] if on_hub else []),
        "library_name: peft",
        "pipeline_tag: text-generation",
        f"tags: [{record.method}, doratune]",
        "---",
        "",
        f"# {record.name}: {kind} adapter of {base.name}",
        "",
        f"Trained with doratune {record.environment.doratune}; a plain PEFT adapter.",
        "",
    ]
    figures = [("trained parameters", f"{record.parameters.trainable:,}")]
    if training is not None:
        figures += [
            ("steps", f"{training.steps:,}"),
            ("loss of the last step", f"{training.final_loss:.4f}"),
            ("tokens", f"{training.tokens:,}"),
            ("time", f"{duration(training.seconds)} on {record.environment.gpu or record.environment.cpu}"),
        ]
    return "\n".join(
        [
            *head,
            *base_section(base),
            *training_sections(record),
            *section("Figures", ("", ""), figures),
            *loading(record.model),
        ]
    )


def loading(model: ModelRecord) -> list[str]:
    """The lines on loading an adapter of this base model."""
    base, file = model.name, ""
    place = json.dumps(base, ensure_ascii=False)
    if base in BUILTIN:
        place = f'"FOLDER"  # printed by `doratune models --path {base}`'
    elif base.endswith(".gguf"):
        path = Path(base)
        place = json.dumps(str(path.parent), ensure_ascii=False)
        file = f" gguf_file={json.dumps(path.name, ensure_ascii=False)},"
    return [
        "## Load it",
        "",
        "With PEFT and transformers alone:",
        "",
        "```python",
        "from peft import PeftModel",
        "from transformers import AutoModelForCausalLM, AutoTokenizer",
        "",
        f"base = {place}",
        'adapter = "ADAPTER"  # this folder',
        f'model = AutoModelForCausalLM.from_pretrained(base,{file} dtype="{model.dtype}")',
        "model = PeftModel.from_pretrained(model, adapter)",
        "tokenizer = AutoTokenizer.from_pretrained(adapter)",
        "```",
        "",
        f"Or `doratune eval ADAPTER --task TASK`, with `--model` if the base is not found as `{base}`.",
        "",
    ]


def base_section(base: ModelRecord) -> list[str]:
    """The lines on the base model."""
    facts = [
        ("name", f"`{base.name}`"),
        ("from", base.source),
        ("parameters", f"{base.parameters:,}"),
        ("type", base.dtype),
        ("fingerprint", f"`{base.fingerprint}`" if base.fingerprint else "not taken"),
    ]
    return section("Base model", ("", ""), facts)


def training_sections(record: RunRecord) -> list[str]:
    """The lines on the data and the settings of a run."""
    rows = [
        (one.task or "no task", one.source, one.split, f"{one.rows:,}", f"`{one.sha256}`")
        for one in record.data
    ]
    used = [name for name in SHOWN if name not in unused_settings(record)]
    settings = [(f"`{name}`", text) for name in used if (text := _setting(record.config, name))]
    return [
        *section("Data", ("task", "from", "split", "rows", "SHA-256"), rows),
        *section("Settings", ("setting", "value"), settings),
    ]


def section(title: str, columns: tuple[str, ...], rows: Iterable[tuple[str, ...]]) -> list[str]:
    """A heading and a table."""
    lines = [columns, ("---",) * len(columns), *rows]
    return [f"## {title}", "", *("| " + " | ".join(map(_cell, line)) + " |" for line in lines), ""]


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|")


def _setting(config: Mapping[str, Any], name: str) -> str | None:
    """A setting's value; None for one that is off, unset or without effect."""
    value = config.get(name)
    if name == "warmup_steps" and value is None:
        return f"{100 * WARMUP_SHARE:g} % of the steps"
    if value is None or value is False or (name == "epochs" and config.get("steps")):
        return None
    return " ".join(map(str, value)) if isinstance(value, list) else str(value)
