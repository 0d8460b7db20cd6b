"""Loading a saved adapter: every tensor in its file must be used, and every adapter tensor filled."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from peft import PeftConfig, PeftModel, get_peft_model_state_dict, set_peft_model_state_dict
from torch import Tensor
from transformers import PreTrainedModel

from doratune.errors import InputError, first_of
from doratune.peft.adapter_file import read_adapter_config, read_adapter_tensors
from doratune.records.adapter_folder import WEIGHTS


def load_adapter(
    model: PreTrainedModel, folder: Path, *, hollow: bool = False, flag: str = "--model"
) -> PeftModel:
    """Load the adapter in ``folder`` into ``model``.

    Args:
        model: The base model that the adapter was trained on.
        folder: An adapter as PEFT saves it.
        hollow: The model's weights have no content, so an initialisation that would change them is left out;
            for LoRA and DoRA only.
        flag: The flag that names the base model, for messages.

    Returns:
        The PEFT model, frozen.

    Raises:
        InputError: The adapter cannot be read, does not fit the model, is incomplete, has tensors that the
            model has no place for, or was trained on a base that its initialisation changed and that is lost.
    """
    config: Any = read_adapter_config(folder)
    refuse_conditional(config, where=str(folder))
    _refuse_lost_base(config, folder)
    tensors = read_adapter_tensors(folder)
    if hollow:
        config.init_lora_weights = True
    with fitting(folder, flag), warnings.catch_warnings():
        # fill_adapter raises a better error.
        warnings.filterwarnings("ignore", "Found missing adapter keys")
        loaded = PeftModel.from_pretrained(model, str(folder), config=config, low_cpu_mem_usage=hollow)
    fill_adapter(loaded, folder, tensors, in_place=not hollow, flag=flag)
    return loaded


def fill_adapter(
    model: PeftModel,
    folder: Path,
    tensors: dict[str, Tensor] | None = None,
    *,
    in_place: bool = True,
    flag: str = "--model",
) -> None:
    """Fill a model's adapter from a file whose keys must match it exactly.

    Args:
        model: A model with the adapter's layers.
        folder: The adapter's folder.
        tensors: The result of ``read_adapter_tensors``, if it has been called.
        in_place: Copy the tensors into the model's. Otherwise they take their place; on the meta device only
            keys and shapes are compared.
        flag: The flag that names the base model, for messages.

    Raises:
        InputError: The file cannot be read, or its keys or shapes are not the model's.
    """
    tensors = read_adapter_tensors(folder) if tensors is None else tensors
    with fitting(folder, flag):
        result: Any = set_peft_model_state_dict(model, tensors, low_cpu_mem_usage=not in_place)
    missing, unused = _unfilled(model, result.missing_keys), list(result.unexpected_keys)
    if missing or unused:
        got = [("missing", missing), ("unused", unused)]
        raise InputError(
            "the adapter's file and its configuration do not match on this model",
            where=str(folder / WEIGHTS),
            got="; ".join(f"{len(keys)} {kind} ({first_of(keys)})" for kind, keys in got if keys),
            expected=f"the {len(get_peft_model_state_dict(model, save_embedding_layers=False))} tensors of "
            "adapter_config.json",
            fix=f"copy the whole folder again from where it was trained, and name its base with {flag}",
        )


def _unfilled(model: PeftModel, missing: Sequence[str]) -> list[str]:
    """The ``missing`` keys that belong to the model's adapter, as PEFT saves them."""
    state = model.state_dict()
    left = {id(state[key]) for key in missing}
    # PEFT itself knows what an adapter consists of: layers, trained biases, whole modules, single tokens.
    saved = get_peft_model_state_dict(model, state_dict=state, save_embedding_layers=False)
    return [key for key, tensor in saved.items() if id(tensor) in left]


@contextmanager
def fitting(folder: Path, flag: str = "--model") -> Iterator[None]:
    """Turn PEFT's exceptions while it loads the adapter in ``folder`` into one InputError."""
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
    except Exception as error:  # PEFT's exception for an unusable value depends on the key
        lines = str(error).strip().splitlines() or [""]
        raise InputError(
            "the adapter does not fit this base model",
            where=str(folder),
            got=f"{type(error).__name__}: {lines[-1].strip()}",
            fix=f"name the model it was trained on with {flag}",
        ) from error


def refuse_conditional(config: PeftConfig, *, where: str) -> None:
    """Refuse an adapter that is not always on: it would silently be off when rows are scored.

    Args:
        config: The adapter's configuration.
        where: Where it was given, for the message.

    Raises:
        InputError: It is switched on by a prompt or another adapter.
    """
    for key in ("alora_invocation_tokens", "arrow_config"):
        if getattr(config, key, None):
            raise InputError(
                "a prompt or another adapter switches this adapter on, which doratune cannot score",
                where=where,
                got=key,
                expected="LoRA or DoRA that is always on",
            )


def lost_base(config: PeftConfig) -> str | None:
    """What an initialisation's change of the base depends on, if loading cannot repeat the change.

    ``pissa`` and ``olora`` change the base too, by a decomposition that PEFT repeats when it loads.
    """
    kind = str(getattr(config, "init_lora_weights", None)).lower()
    if kind.startswith("pissa_niter"):
        return "random numbers"
    return {"lora_ga": "gradients", "corda": "activations"}.get(kind)


def changes_base(config: PeftConfig) -> bool:
    """Whether an adapter's initialisation changes the base's weights."""
    kind = str(getattr(config, "init_lora_weights", None)).lower()
    return kind in ("olora", "loftq", "lora_ga", "corda") or kind.startswith("pissa")


def _refuse_lost_base(config: Any, folder: Path) -> None:
    """Refuse an adapter whose initialisation changed the base in a way that loading cannot repeat.

    Raises:
        InputError: The change depended on random numbers or on data.
    """
    reason = lost_base(config)
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
        # PEFT does not convert the magnitudes, so they do not fit the converted direction.
        fix=merge if config.use_dora else convert,
    )
