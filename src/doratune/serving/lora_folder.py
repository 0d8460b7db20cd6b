"""Writes a plain PEFT LoRA folder, with what its source adapter holds besides the adapted layers."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path

from peft import LoraConfig
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase

from doratune.errors import InputError, first_of
from doratune.peft.adapter_file import WEIGHTS
from doratune.records.files import write_json_atomic
from doratune.records.layout import ADAPTER_CONFIG
from doratune.records.run import ModelRecord
from doratune.records.storage import write_base_model
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


def carried_note(config: LoraConfig) -> str | None:
    """What a folder holds besides LoRA, in a sentence; None if that is nothing."""
    parts = []
    if config.modules_to_save:
        parts.append(f"whole modules ({', '.join(sorted(config.modules_to_save))})")
    if config.bias != "none":
        parts.append(f"trained biases (bias {config.bias})")
    if config.trainable_token_indices:
        parts.append("trained tokens")
    if not parts:
        return None
    return f"the adapter also holds {' and '.join(parts)}, which many servers do not take"


def write_lora(
    folder: Path,
    config: LoraConfig,
    tensors: Mapping[str, Tensor],
    *,
    base: ModelRecord,
    tokenizer: PreTrainedTokenizerBase,
) -> None:
    """Write an adapter, in place of one that is there already.

    Args:
        folder: The folder.
        config: Its configuration.
        tensors: By their keys in PEFT's file.
        base: The base model that it belongs to.
        tokenizer: The base model's tokenizer.
    """
    config.save_pretrained(str(folder))
    path = folder / ADAPTER_CONFIG
    values = read_object(path, "the adapter's configuration")
    if isinstance(values["target_modules"], list):
        values["target_modules"].sort()  # PEFT writes a set
    write_json_atomic(path, values)
    save_file({key: one.contiguous() for key, one in tensors.items()}, folder / WEIGHTS, {"format": "pt"})
    write_base_model(folder, base)
    tokenizer.save_pretrained(str(folder))
