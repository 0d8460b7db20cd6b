"""A model's layers without their weights, to check what fits them before the model is loaded."""

from __future__ import annotations

from pathlib import Path

import torch
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

from doratune.cache import cache_home
from doratune.models.builtin import BUILTIN, folder_name
from doratune.records.layout import MODEL_CONFIG


def skeleton(name: str, *, trust_remote_code: bool = False) -> PreTrainedModel | None:
    """A model on the meta device, from its configuration alone; neither the hub nor PyPI is asked.

    Args:
        name: A built-in name, a folder, a ``.gguf`` file or a hub id.
        trust_remote_code: Let a model run its own code.

    Returns:
        The model; None if it has no folder on this machine, or its code does not run without weights.
    """
    folder = cache_home() / "models" / folder_name(name) if name in BUILTIN else Path(name).expanduser()
    if not (folder / MODEL_CONFIG).is_file():
        return None
    try:
        config = AutoConfig.from_pretrained(folder, trust_remote_code=trust_remote_code)
        with torch.device("meta"):
            return AutoModelForCausalLM.from_config(config, trust_remote_code=trust_remote_code)
    except Exception:  # each model's code has its own; loading the model says what is wrong
        return None
