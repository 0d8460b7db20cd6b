"""The files of an adapter's folder and the names in them, as PEFT writes them; read without torch."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from doratune.errors import InputError
from doratune.records.layout import ADAPTER_CONFIG
from doratune.strict_json import read_object

WEIGHTS, PICKLED = "adapter_model.safetensors", "adapter_model.bin"
LORA_FACTORS = "lora_A.weight", "lora_B.weight"
"""What the names of a linear layer's or a convolution's A and B end with."""
EMBEDDING_FACTORS = "lora_embedding_A", "lora_embedding_B"
"""The same for an embedding."""
MAGNITUDE = "lora_magnitude_vector"
"""What a magnitude's name has, before the suffix of some releases of PEFT."""
CONVERT = (
    'python -c "import torch; from safetensors.torch import save_file; '
    f"t = torch.load('{PICKLED}', weights_only=True); "
    f"save_file({{k: v.contiguous().clone() for k, v in t.items()}}, '{WEIGHTS}')\""
)


def read_adapter_settings(folder: Path) -> dict[str, Any]:
    """Read ``folder``/adapter_config.json of an adapter of any PEFT method, as it is.

    Raises:
        InputError: It is missing or broken, or does not say what it is of.
    """
    path = folder / ADAPTER_CONFIG
    values = read_object(path, "the adapter's configuration")
    if not isinstance(values.get("peft_type"), str):
        raise InputError(
            "the adapter does not say of which PEFT method it is",
            where=str(path),
            got=f"peft_type {values['peft_type']}" if "peft_type" in values else "no peft_type",
            expected="a peft_type, such as LORA, which is LoRA's and DoRA's",
        )
    return values


def read_lora_settings(folder: Path) -> dict[str, Any]:
    """Read ``folder``/adapter_config.json of a LoRA or DoRA adapter, as it is.

    Raises:
        InputError: It is missing or broken, or of another PEFT method.
    """
    values = read_adapter_settings(folder)
    refuse_other_methods(values, folder)
    return values


def refuse_other_methods(values: Mapping[str, Any], folder: Path) -> None:
    """Refuse an adapter that is neither LoRA nor DoRA, for what needs their A, B and m.

    Args:
        values: The result of ``read_adapter_settings``.
        folder: The adapter's folder, for the message.

    Raises:
        InputError: It is of another PEFT method.
    """
    if values["peft_type"] != "LORA":
        raise InputError(
            "only adapters of LoRA and DoRA can be merged, converted, exported, served or analysed here",
            where=str(folder / ADAPTER_CONFIG),
            got=f"peft_type {values['peft_type']}",
            expected="peft_type LORA, which is LoRA's and DoRA's",
            fix="doratune eval takes the adapter as it is; PEFT's own merge_and_unload may merge it",
        )


UNTOLD = frozenset(
    {"base_model_name_or_path", "revision", "inference_mode", "auto_mapping", "peft_version", "task_type"}
)
"""Keys of adapter_config.json that do not say what an adapter computes."""


def told_settings(values: Mapping[str, Any]) -> dict[str, Any]:
    """What an adapter computes: the settings in its adapter_config.json that are not off or empty.

    Args:
        values: The result of ``read_adapter_settings``. PEFT writes sets of names in any order.
    """
    told = {
        key: value
        for key, value in values.items()
        if key not in UNTOLD and value not in (None, False, {}, [], "none")
    }
    return {key: sorted(value, key=str) if isinstance(value, list) else value for key, value in told.items()}


def refuse_pickle(folder: Path) -> None:
    """Refuse an adapter whose tensors are only in a pickle.

    Raises:
        InputError: They are; the message has a command that converts it.
    """
    if not (folder / WEIGHTS).is_file() and (folder / PICKLED).is_file():
        raise InputError(
            "the adapter is a pickle, which could run any code; doratune never reads one",
            where=str(folder / PICKLED),
            expected=WEIGHTS,
            fix=f"if you trust it, convert it in its folder: {CONVERT}",
        )
