"""A base model whose weights stay in its files: modules, shapes, tokenizer and files."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from accelerate import init_empty_weights
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from doratune.errors import DoratuneError, InputError
from doratune.models.builtin import BUILTIN, resolve_builtin
from doratune.models.config_files import refuse_repeated_keys
from doratune.models.gguf import first_line
from doratune.models.load import LoadedModel, refuse_no_model
from doratune.models.names import refuse_unknown_model, source_of
from doratune.models.tokenizer import ensure_pad_token, refuse_unembedded_ids
from doratune.models.weights import WeightFiles, weights_folder


@dataclass(frozen=True)
class ModelOnDisk:
    """A base model that is not in memory.

    Attributes:
        loaded: The model, whose parameters have no content, and its tokenizer.
        place: What transformers reads its tokenizer and configuration from: a folder or a hub id.
        files: Its weights.
        parameters: The names of its parameters, each once.
        tied: Further names of parameters, by the one in ``parameters``.
    """

    loaded: LoadedModel
    place: str
    files: WeightFiles
    parameters: list[str]
    tied: dict[str, str]

    @property
    def model(self) -> PreTrainedModel:
        """The model."""
        return self.loaded.model

    @property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        """Its tokenizer."""
        return self.loaded.tokenizer


def open_model(name: str, *, trust_remote_code: bool = False, where: str = "--model") -> ModelOnDisk:
    """Open a causal LM without reading its weights.

    Args:
        name: A built-in name, a local folder, a ``.gguf`` file or a hub id, as for ``load_model``.
        trust_remote_code: Let the hub repository run its own code.
        where: Where the user named it, for messages.

    Raises:
        InputError: It cannot be found or read, or its files are quantised.
    """
    refuse_unknown_model(name, where=where)
    folder = weights_folder(name, where=where)
    refuse_no_model(folder, where=where)
    refuse_repeated_keys(folder)
    local = name in BUILTIN or Path(name).expanduser().exists()
    place = str(folder) if local else name
    try:
        tokenizer = AutoTokenizer.from_pretrained(place, trust_remote_code=trust_remote_code)
        model = skeleton(place, trust_remote_code=trust_remote_code)
    except DoratuneError:
        raise
    except Exception as error:  # each configuration class, tokenizer and file format has its own exceptions
        raise InputError("the base model cannot be read", where=name, got=first_line(error)) from error
    if getattr(model.config, "quantization_config", None):
        raise InputError(
            "the base model's files are quantised",
            where=name,
            expected="a base in float32, bfloat16 or float16",
            fix="name the model that it was quantised from",
        )
    files = WeightFiles(folder, model)
    refuse_unembedded_ids(model, tokenizer, name)
    ensure_pad_token(model, tokenizer, name)
    source = resolve_builtin(name)[1] if name in BUILTIN else source_of(name)
    loaded = LoadedModel(model=model, tokenizer=tokenizer, name=name, source=source, dtype=files.main_dtype)
    names = [key for key, _ in model.named_parameters()]
    return ModelOnDisk(loaded, place, files, names, _tied(model))


def skeleton(place: str, **kwargs: Any) -> PreTrainedModel:
    """The model that a configuration describes, with parameters on the meta device and float32 buffers.

    Args:
        place: A folder or a hub id.
        **kwargs: For ``AutoConfig.from_pretrained``.
    """
    config = AutoConfig.from_pretrained(place, **kwargs)
    with init_empty_weights():
        model = AutoModelForCausalLM.from_config(
            config, dtype=torch.float32, trust_remote_code=kwargs.get("trust_remote_code", False)
        )
    model.tie_weights()  # a parameter that is registered twice has become two
    return model.eval()


def _tied(model: PreTrainedModel) -> dict[str, str]:
    """Names of parameters that are another one, by the name under which it is counted."""
    names = {id(one): name for name, one in model.named_parameters()}
    everything = model.named_parameters(remove_duplicate=False)
    return {name: names[id(one)] for name, one in everything if names[id(one)] != name}
