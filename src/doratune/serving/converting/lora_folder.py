"""Writes a plain PEFT LoRA folder, with what its source adapter holds besides the adapted layers."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path

from peft import LoraConfig
from torch import Tensor, nn

from doratune.errors import InputError, first_of
from doratune.records.adapter_folder import WEIGHTS
from doratune.records.files import write_json_atomic
from doratune.records.layout import ADAPTER_CONFIG
from doratune.records.run import ModelRecord
from doratune.records.storage import write_base_model
from doratune.serving.adapted import AdaptedBase
from doratune.serving.files import TensorFile
from doratune.serving.model_folder import write_tokenizer
from doratune.strict_json import read_object

OF_LORA = ".lora_"
"""In the key of every tensor of an adapted layer."""
KEPT = ("task_type", "fan_in_fan_out", "bias", "modules_to_save", "trainable_token_indices")
"""Settings of the source that stay: how a weight is stored, and what is trained besides LoRA."""
REFUSED = {
    "target_parameters": "parameters adapted without a layer",
    "lora_bias": "a trained bias of B",
    "megatron_config": "layers of Megatron",
}
"""Settings of parts that are not converted."""


def refuse_unconverted(config: LoraConfig, kinds: Mapping[str, str], folder: Path) -> None:
    """Refuse an adapter with parts that are not converted.

    Args:
        config: Its configuration.
        kinds: The kind of each adapted layer by its name.
        folder: Its folder, for the message.

    Raises:
        InputError: It has some.
    """
    got = [f"{key} ({what})" for key, what in REFUSED.items() if getattr(config, key)]
    other = [name for name, kind in kinds.items() if kind == "conv"]
    if other:
        got.append(f"convolutions ({first_of(other)})")
    if got:
        raise InputError(
            "the adapter has parts that are not converted into LoRA",
            where=str(folder),
            got="; ".join(got),
            expected="linear layers and embeddings",
            fix="merge it instead: doratune merge",
        )


def lora_config(source: LoraConfig, *, rank: int, base: str, targets: Iterable[str]) -> LoraConfig:
    """The configuration of a LoRA with scaling 1.

    Args:
        source: The adapter that it was made from.
        rank: The rank of every layer.
        base: The base model's name.
        targets: The layers.
    """
    kept = {key: getattr(source, key) for key in KEPT}
    return LoraConfig(
        **kept,
        r=rank,
        lora_alpha=rank,
        target_modules=sorted(targets),
        base_model_name_or_path=base,
        revision=source.revision,
        inference_mode=True,
    )


def short_targets(model: nn.Module, layers: Iterable[str]) -> list[str]:
    """The last parts of the layers' names if they fit no other module of the base, else the whole names.

    Args:
        model: The base model.
        layers: The names of all adapted layers.
    """
    adapted = set(layers)
    short = sorted({name.rpartition(".")[2] for name in adapted})
    fitting = {name for name, _ in model.named_modules() if name.rpartition(".")[2] in short}
    return short if fitting == adapted else sorted(adapted)


def carried(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors of an adapter's file that are not LoRA's or DoRA's: whole modules, biases, tokens."""
    return {key: tensor for key, tensor in tensors.items() if OF_LORA not in key}


def source_notes(source: AdaptedBase) -> list[str]:
    """What is to be known of any conversion of an adapter, in sentences: its base, and what is not LoRA."""
    notes, config = [], source.config
    if source.other_base is not None:
        notes.append(f"converted onto {source.other_base.name}, another base than the adapter was trained on")
    if source.record is not None and source.record.config.get("load_in_4bit"):
        notes.append(
            "the run was trained in 4 bits; the conversion is for the base in full precision, and was "
            "compared with the adapter on that"
        )
    parts = []
    if config.modules_to_save:
        parts.append(f"whole modules ({', '.join(sorted(config.modules_to_save))})")
    if config.bias != "none":
        parts.append(f"trained biases (bias {config.bias})")
    if config.trainable_token_indices:
        parts.append("trained tokens")
    if parts:
        notes.append(f"the adapter also holds {' and '.join(parts)}, which many servers do not take")
    return notes


def write_lora(
    folder: Path, config: LoraConfig, tensors: Mapping[str, Tensor], *, source: AdaptedBase, base: ModelRecord
) -> None:
    """Write an adapter, in place of one that is there already.

    Args:
        folder: The folder.
        config: Its configuration.
        tensors: By their keys in PEFT's file.
        source: The adapter that it was made from, which gives the tokenizer.
        base: The base model that it belongs to.
    """
    config.save_pretrained(str(folder))
    path = folder / ADAPTER_CONFIG
    values = read_object(path, "the adapter's configuration")
    if isinstance(values["target_modules"], list):
        values["target_modules"].sort()  # PEFT writes a set
    write_json_atomic(path, values)
    (folder / WEIGHTS).unlink(missing_ok=True)
    with TensorFile(
        folder / WEIGHTS, {key: (one.dtype, tuple(one.shape)) for key, one in tensors.items()}
    ) as file:
        for key in file.names:
            file.write(key, tensors[key])
    write_base_model(folder, base)
    write_tokenizer(source.base, folder, adapter=source.adapter)
