"""Loading with transformers, with errors that a user can act on."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from doratune.errors import DoratuneError, InputError
from doratune.hub import hub_or_cache
from doratune.models.builtin import BUILTIN, resolve_builtin
from doratune.models.config_files import refuse_repeated_keys, refuse_repeated_keys_of_hub
from doratune.models.gguf import first_line, read_gguf, unreadable
from doratune.models.names import no_such_model, refuse_unknown_model, source_of
from doratune.models.precision import resolve_dtype
from doratune.models.tokenizer import ensure_pad_token, refuse_unembedded_ids
from doratune.models.weights import WeightFiles, refuse_pickles
from doratune.models.whole import load_whole, refuse_not_finite, without_content
from doratune.records.layout import ADAPTER_CONFIG, ADAPTER_NAME, MODEL_CONFIG

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class LoadedModel:
    """A causal language model ready to be adapted or evaluated.

    Attributes:
        model: The transformers model, in evaluation mode.
        tokenizer: Its tokenizer, which has a pad token.
        name: The name that the user gave.
        source: Where it came from, in one line.
        dtype: The floating-point type of its unquantised weights.
    """

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    name: str
    source: str
    dtype: torch.dtype


def own_device() -> torch.device:
    """This process's device."""
    from accelerate import PartialState

    return torch.device(PartialState().device or "cpu")


def on_cpu() -> bool:
    """Whether this process's device is a CPU."""
    return own_device().type == "cpu"


def load_model(
    name: str,
    *,
    dtype: str = "auto",
    load_in_4bit: bool = False,
    device_map: str | None = None,
    trust_remote_code: bool = False,
    moves: bool = True,
    content: bool = True,
) -> LoadedModel:
    """Load a causal LM and its tokenizer.

    Args:
        name: A built-in name (``smollm2-135m``), a local folder, a ``.gguf`` file or a hub id, tried in this
            order.
        dtype: ``auto``, ``float32``, ``bfloat16`` or ``float16``.
        load_in_4bit: Quantise the base to NF4 with bitsandbytes while loading.
        device_map: Passed to transformers, for example ``auto``; None: this process's device.
        trust_remote_code: Let the hub repository run its own code.
        moves: Move the model to this process's device; otherwise it stays on the CPU, and only its type
            depends on the device. One that is quantised or has a ``device_map`` is loaded where it belongs.
        content: Whether to load the weights. Otherwise every parameter is a ``FakeTensor`` on the CPU, with a
            shape and a dtype only, and neither quantised nor divided among devices.

    Returns:
        The model on this process's device (or as ``device_map`` says).

    Raises:
        InputError: If ``name`` cannot be found or loaded, or the model is not complete: weights are missing,
            left over, of other shapes or not finite, or the tokenizer has ids without an embedding.
    """
    device = own_device()
    torch_dtype = resolve_dtype(dtype, device.type)
    kwargs: dict[str, Any] = {"dtype": torch_dtype}
    if not content:
        kwargs["content"] = False
    elif load_in_4bit:
        kwargs["quantization_config"] = four_bit(torch_dtype)
    if content and (device_map or load_in_4bit):
        kwargs["device_map"] = device_map or {"": device}

    path = Path(name).expanduser()
    refuse_unknown_model(name)
    if name in BUILTIN:
        folder, source = resolve_builtin(name)
        model, tokenizer = _from_folder(folder, kwargs)
    elif path.is_dir():
        source = source_of(name)
        model, tokenizer = _from_folder(path, {**kwargs, "trust_remote_code": trust_remote_code})
    elif path.suffix == ".gguf":
        if load_in_4bit:
            raise InputError("a GGUF file cannot be loaded in 4 bits", where="--load-in-4bit", got=name)
        source = source_of(name)
        model, tokenizer = read_gguf(path, **kwargs)
    else:
        source = source_of(name)
        model, tokenizer = _from_hub(name, {**kwargs, "trust_remote_code": trust_remote_code})
    if moves and content and "device_map" not in kwargs:
        model.to(device)  # pyright: ignore[reportArgumentType]
    if content:
        refuse_not_finite(model, name)
    refuse_unembedded_ids(model, tokenizer, name)
    ensure_pad_token(model, tokenizer, name)
    model.eval()
    return LoadedModel(model=model, tokenizer=tokenizer, name=name, source=source, dtype=torch_dtype)


def _from_folder(folder: Path, kwargs: dict[str, Any]) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    refuse_no_model(folder)
    refuse_repeated_keys(folder)
    WeightFiles(folder)  # its messages name the file; only the headers are read
    try:
        return _pretrained(str(folder), kwargs)
    except (DoratuneError, MemoryError, torch.OutOfMemoryError):
        raise
    except Exception as error:  # each configuration class, tokenizer and file format has its own exceptions
        raise unreadable(folder, error) from error


def refuse_no_model(folder: Path, *, where: str = "--model") -> None:
    """Refuse a folder without a model.

    Raises:
        InputError: It holds an adapter, or no config.json.
    """
    if any((place / ADAPTER_CONFIG).is_file() for place in (folder, folder / ADAPTER_NAME)):
        raise InputError(
            "this folder holds an adapter, not a model",
            where=where,
            got=folder,
            expected="a folder with config.json and *.safetensors",
            fix=f"name the base model; to evaluate an adapter: doratune eval {folder}",
        )
    if not (folder / MODEL_CONFIG).is_file():
        raise InputError("the model folder has no config.json", where=where, got=folder)


def _from_hub(name: str, kwargs: dict[str, Any]) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    with hub_or_cache(name) as answer:
        refuse_pickles(answer.files, name)
        try:
            loaded = _pretrained(name, kwargs)
        except (DoratuneError, MemoryError, torch.OutOfMemoryError):
            raise
        except Exception as error:  # the hub, the network, the configuration and the files have their own
            if answer.failure:
                raise InputError(
                    "the model could not be loaded from the hub",
                    where="--model",
                    got=f"{name}: {answer.failure}",
                    fix="check the id and the connection, or name a local folder",
                ) from error
            raise no_such_model(name, f"check the path or id ({first_line(error)})") from error
    refuse_repeated_keys_of_hub(name)
    if answer.failure:
        logger.warning("%s; the copy in the cache is used", answer.failure)
    return loaded


def _pretrained(name: str, kwargs: dict[str, Any]) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    trust = kwargs.get("trust_remote_code", False)
    tokenizer = AutoTokenizer.from_pretrained(name, trust_remote_code=trust)
    if not kwargs.pop("content", True):
        return without_content(name, **kwargs), tokenizer
    return load_whole(name, use_safetensors=True, **kwargs), tokenizer


def four_bit(compute_dtype: torch.dtype) -> Any:
    """The configuration of NF4 with double quantisation, in which ``--load-in-4bit`` loads.

    Raises:
        InputError: bitsandbytes is not installed.
    """
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
