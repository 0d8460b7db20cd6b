"""Loading: transformers' own, with the errors a user can act on."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from doratune.errors import InputError, did_you_mean
from doratune.models.builtin import BUILTIN, resolve_builtin
from doratune.models.gguf import first_line, read_gguf, unreadable
from doratune.models.precision import resolve_dtype
from doratune.records.layout import ADAPTER_CONFIG, ADAPTER_NAME, MODEL_CONFIG, refuse_missing_folder

logger = logging.getLogger(__name__)

WEIGHT_FILES = ("*.safetensors", "*.safetensors.index.json")


@dataclass(frozen=True)
class LoadedModel:
    """A causal language model ready to be adapted or evaluated.

    Attributes:
        model: The transformers model, in evaluation mode.
        tokenizer: Its tokenizer, which has a pad token.
        name: What the user asked for.
        source: Where it came from, in one line.
        dtype: The floating-point type of its unquantised weights.
    """

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    name: str
    source: str
    dtype: torch.dtype


def on_cpu() -> bool:
    """Whether this process's device is a CPU."""
    from accelerate import PartialState

    return torch.device(PartialState().device or "cpu").type == "cpu"


def load_model(
    name: str,
    *,
    dtype: str = "auto",
    load_in_4bit: bool = False,
    device_map: str | None = None,
    trust_remote_code: bool = False,
) -> LoadedModel:
    """Load a causal LM and its tokenizer.

    Args:
        name: A built-in name (``smollm2-135m``), a local folder, a ``.gguf`` file or a hub id, looked at in
            this order.
        dtype: ``auto``, ``float32``, ``bfloat16`` or ``float16``.
        load_in_4bit: Quantise the base to NF4 with bitsandbytes while loading.
        device_map: Passed to transformers, for example ``auto``; None: this process's device.
        trust_remote_code: Let the hub repository run its own code.

    Returns:
        The model on this process's device (or as ``device_map`` says).

    Raises:
        InputError: If nothing loadable is found under ``name``.
    """
    from accelerate import PartialState

    device = torch.device(PartialState().device or "cpu")
    torch_dtype = resolve_dtype(dtype, device.type)
    kwargs: dict[str, Any] = {"dtype": torch_dtype}
    if load_in_4bit:
        kwargs["quantization_config"] = _four_bit(torch_dtype)
    if device_map or load_in_4bit:
        kwargs["device_map"] = device_map or {"": device}

    path = Path(name).expanduser()
    refuse_missing_folder(name, "model", where="--model")
    if name in BUILTIN:
        folder, source = resolve_builtin(name)
        model, tokenizer = _from_folder(folder, kwargs)
    elif path.is_dir():
        source = f"folder {path}"
        model, tokenizer = _from_folder(path, {**kwargs, "trust_remote_code": trust_remote_code})
    elif path.suffix == ".gguf":
        if load_in_4bit:
            raise InputError("a GGUF file cannot be loaded in 4 bits", where="--load-in-4bit", got=name)
        source = f"GGUF file {path}"
        model, tokenizer = read_gguf(path, **kwargs)
    elif "/" not in name and (fix := did_you_mean(name, BUILTIN)):
        raise _no_such_model(name, fix)
    else:
        source = f"hub {name}"
        model, tokenizer = _from_hub(name, {**kwargs, "trust_remote_code": trust_remote_code})
    if "device_map" not in kwargs:
        model.to(device)  # pyright: ignore[reportArgumentType]
    _ensure_pad_token(model, tokenizer, name)
    model.eval()
    return LoadedModel(model=model, tokenizer=tokenizer, name=name, source=source, dtype=torch_dtype)


def _from_folder(folder: Path, kwargs: dict[str, Any]) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    if any((place / ADAPTER_CONFIG).is_file() for place in (folder, folder / ADAPTER_NAME)):
        raise InputError(
            "this folder holds an adapter, not a model",
            where="--model",
            got=folder,
            expected="a folder with config.json and *.safetensors",
            fix=f"name the base model; to evaluate an adapter: doratune eval {folder}",
        )
    if not (folder / MODEL_CONFIG).is_file():
        raise InputError("the model folder has no config.json", where="--model", got=folder)
    if not any(next(folder.glob(pattern), None) for pattern in WEIGHT_FILES):
        raise InputError(
            "the model folder has no weights",
            where="--model",
            got=folder,
            expected="*.safetensors (other formats would be unpickled, which doratune never does)",
            fix="save the model with save_pretrained, or convert it to safetensors",
        )
    try:
        return _pretrained(str(folder), kwargs)
    except (OSError, ValueError, KeyError, SafetensorError) as error:
        raise unreadable(folder, error) from error


def _from_hub(name: str, kwargs: dict[str, Any]) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    try:
        return _pretrained(name, kwargs)
    except (OSError, ValueError) as error:
        raise _no_such_model(name, f"check the path or id ({first_line(error)})") from error


def _no_such_model(name: str, fix: str) -> InputError:
    return InputError(
        "no such model",
        where="--model",
        got=name,
        expected=f"a built-in name ({', '.join(BUILTIN)}), a folder, a .gguf file or a hub id",
        fix=fix,
    )


def _pretrained(name: str, kwargs: dict[str, Any]) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    trust = kwargs.get("trust_remote_code", False)
    tokenizer = AutoTokenizer.from_pretrained(name, trust_remote_code=trust)
    model = AutoModelForCausalLM.from_pretrained(name, use_safetensors=True, **kwargs)
    return model, tokenizer


def _four_bit(compute_dtype: torch.dtype) -> Any:
    if not _installed("bitsandbytes"):
        raise InputError(
            "--load-in-4bit needs bitsandbytes, which is not installed", fix="pip install 'doratune[bnb]'"
        )
    from transformers import BitsAndBytesConfig

    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=compute_dtype,
    )


def _installed(package: str) -> bool:
    from importlib.util import find_spec

    return find_spec(package) is not None


def _ensure_pad_token(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, name: str) -> None:
    """Give a tokenizer without a pad token one that exists already, so that no embedding is added."""
    if tokenizer.eos_token is None:
        raise InputError(
            "the tokenizer has no end-of-sequence token, so no answer could ever end",
            where="--model",
            got=name,
        )
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.unk_token or tokenizer.eos_token
        logger.info("the tokenizer has no pad token; padding with %s", tokenizer.pad_token)
    model.config.pad_token_id = tokenizer.pad_token_id
