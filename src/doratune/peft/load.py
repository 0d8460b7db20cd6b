"""A saved adapter onto a model: every tensor of its file is used, and every tensor of the model is filled."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, PeftModel, get_peft_model_state_dict, set_peft_model_state_dict
from torch import Tensor
from transformers import PreTrainedModel

from doratune.errors import InputError, first_of
from doratune.peft.adapter_file import WEIGHTS, read_adapter_config, read_adapter_tensors


def load_adapter(model: PreTrainedModel, folder: Path) -> PeftModel:
    """Put the adapter in ``folder`` onto ``model``.

    Args:
        model: The base model that it was trained on.
        folder: A LoRA or DoRA adapter as PEFT saves it.

    Returns:
        The PEFT model, frozen.

    Raises:
        InputError: The adapter cannot be read, does not fit the model, is not complete, holds more than the
            model has a place for, or was trained on a base that was changed for it and is not at hand.
    """
    config = read_adapter_config(folder)
    _refuse_conditional(config, folder)
    _refuse_lost_base(config, folder)
    tensors = read_adapter_tensors(folder)
    with fitting(folder), warnings.catch_warnings():
        # Said better below, as an error.
        warnings.filterwarnings("ignore", "Found missing adapter keys")
        loaded = PeftModel.from_pretrained(model, str(folder), config=config)
    fill_adapter(loaded, folder, tensors)
    return loaded


def fill_adapter(
    model: PeftModel, folder: Path, tensors: dict[str, Tensor] | None = None, *, on_meta: bool = False
) -> None:
    """Fill a model's adapter from a file that must match it key by key.

    Args:
        model: Has the adapter's layers already.
        folder: The adapter's folder.
        tensors: What ``read_adapter_tensors`` gives for it, if that has been called.
        on_meta: The model has no memory: the keys and shapes are compared only.

    Raises:
        InputError: The file cannot be read, or its keys or shapes are not the model's.
    """
    tensors = read_adapter_tensors(folder) if tensors is None else tensors
    with fitting(folder):
        result: Any = set_peft_model_state_dict(model, tensors, low_cpu_mem_usage=on_meta)
    missing, unused = _unfilled(model, result.missing_keys), list(result.unexpected_keys)
    if missing or unused:
        got = [("missing", missing), ("unused", unused)]
        raise InputError(
            "the adapter's file and its configuration do not match on this model",
            where=str(folder / WEIGHTS),
            got="; ".join(f"{len(keys)} {kind} ({first_of(keys)})" for kind, keys in got if keys),
            expected=f"the {len(get_peft_model_state_dict(model, save_embedding_layers=False))} tensors of "
            "adapter_config.json",
            fix="copy the whole folder again from where it was trained, and name its base with --model",
        )


def _unfilled(model: PeftModel, missing: Sequence[str]) -> list[str]:
    """Those of the model's ``missing`` keys that belong to its adapter, as PEFT saves them."""
    state = model.state_dict()
    left = {id(state[key]) for key in missing}
    # PEFT itself says what an adapter consists of: layers, trained biases, whole modules, single tokens.
    saved = get_peft_model_state_dict(model, state_dict=state, save_embedding_layers=False)
    return [key for key, tensor in saved.items() if id(tensor) in left]


@contextmanager
def fitting(folder: Path) -> Iterator[None]:
    """What PEFT raises while it puts the adapter in ``folder`` onto a model, as one InputError."""
    try:
        yield
    except KeyError as error:
        raise InputError(
            "the adapter's file and its configuration do not match on this model",
            where=str(folder / WEIGHTS),
            got=f"1 missing ({error.args[0]})",
        ) from error
    except torch.OutOfMemoryError:
        raise
    except Exception as error:  # what PEFT raises for a value that it cannot use depends on the key
        lines = str(error).strip().splitlines() or [""]
        raise InputError(
            "the adapter does not fit this base model",
            where=str(folder),
            got=f"{type(error).__name__}: {lines[-1].strip()}",
            fix="name the model it was trained on with --model",
        ) from error


def _refuse_conditional(config: LoraConfig, folder: Path) -> None:
    """Refuse an adapter that is not always on: scored row by row it would be silently off."""
    for key in ("alora_invocation_tokens", "arrow_config"):
        if getattr(config, key):
            raise InputError(
                "a prompt or another adapter switches this adapter on, which doratune cannot score",
                where=str(folder),
                got=key,
                expected="LoRA or DoRA that is always on",
            )


def _refuse_lost_base(config: LoraConfig, folder: Path) -> None:
    """Refuse an adapter whose initialisation changed the base in a way that loading cannot repeat.

    ``pissa`` and ``olora`` change the base too, by a decomposition that PEFT repeats when it loads.

    Raises:
        InputError: The change depended on random numbers or on data.
    """
    kind = str(config.init_lora_weights).lower()
    reason = {"lora_ga": "gradients", "corda": "activations"}.get(kind)
    if kind.startswith("pissa_niter"):
        reason = "random numbers"
    if reason is None:
        return
    convert = (
        "save it converted where it was trained: path_initial_model_for_weight_conversion of save_pretrained"
    )
    merge = "merge it where it was trained (merge_and_unload) and evaluate that model"
    raise InputError(
        "the adapter was trained on a base that its initialisation changed, and that base is not saved",
        where=str(folder),
        got=f"init_lora_weights {config.init_lora_weights}, whose change came from {reason}",
        # PEFT leaves the magnitudes as they are, and they do not fit the converted direction.
        fix=merge if config.use_dora else convert,
    )
