"""The files of an adapter's folder and the names in them, as PEFT writes them; read without torch."""

from __future__ import annotations

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
    """Read ``folder``/adapter_config.json of a LoRA or DoRA adapter, as it is.

    Raises:
        InputError: It is missing or broken, or of another PEFT method.
    """
    path = folder / ADAPTER_CONFIG
    values = read_object(path, "the adapter's configuration")
    method = values.get("peft_type")
    if method != "LORA":
        raise InputError(
            "the adapter's method is not one that doratune knows",
            where=str(path),
            got=f"peft_type {method}" if "peft_type" in values else "no peft_type",
            expected="peft_type LORA, which is LoRA's and DoRA's",
        )
    return values


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
