"""Reading and checking a saved PEFT adapter without its model."""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path

from peft import LoraConfig
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from doratune.errors import InputError, first_of
from doratune.finite import is_finite
from doratune.records.adapter_folder import WEIGHTS, read_adapter_settings, refuse_pickle
from doratune.records.layout import ADAPTER_CONFIG
from doratune.records.run import RunRecord


def read_adapter_config(folder: Path) -> LoraConfig:
    """Read ``folder``/adapter_config.json.

    Args:
        folder: A PEFT adapter, LoRA or DoRA.

    Returns:
        The configuration. A key that this PEFT does not know is left out only if it switches nothing on.

    Raises:
        InputError: It is missing or broken, of another PEFT method, or uses a key unknown to this PEFT.
    """
    path = folder / ADAPTER_CONFIG
    values = read_adapter_settings(folder)
    known = {field.name for field in fields(LoraConfig)}
    strange = [key for key, value in values.items() if key not in known and value]
    if strange:
        raise InputError(
            "the adapter's configuration has keys that the installed PEFT does not know",
            where=str(path),
            got=", ".join(strange),
            fix=f"install the PEFT that saved it ({values.get('peft_version') or 'a newer version'})",
        )
    for key, kinds in (("r", (int,)), ("lora_alpha", (int, float))):
        value = values.get(key, 1)
        if not isinstance(value, kinds) or isinstance(value, bool) or value <= 0:
            raise _unusable(path, key, value, "a positive number")
    switches = [field.name for field in fields(LoraConfig) if field.type in ("bool", bool)]
    for key in switches:
        if not isinstance(values.get(key), bool | None):  # PEFT takes any text as true, even "false"
            raise _unusable(path, key, values[key], "true or false")
    if not isinstance(values.get("base_model_name_or_path", ""), str | None):
        raise _unusable(path, "base_model_name_or_path", values["base_model_name_or_path"], "a text")
    try:
        return LoraConfig(
            **{key: value for key, value in values.items() if key in known - {"runtime_config"}}
        )
    except Exception as error:  # the exception for a wrong value depends on the key
        raise InputError(
            "the adapter's configuration cannot be used",
            where=str(path),
            got=f"{type(error).__name__}: {error}",
        ) from error


def read_adapter_tensors(folder: Path) -> dict[str, Tensor]:
    """Read ``folder``/adapter_model.safetensors.

    Args:
        folder: A PEFT adapter.

    Raises:
        InputError: It is missing or broken, is a pickle, or holds a value that is not finite or not a float.
    """
    path = folder / WEIGHTS
    refuse_pickle(folder)
    try:
        tensors = load_file(path)
    except (OSError, ValueError, SafetensorError) as error:
        raise InputError(
            "the adapter cannot be read",
            where=str(path),
            got=str(error),
            fix="copy the file again from where it was saved",
        ) from error
    if rounded := [key for key, tensor in tensors.items() if not tensor.is_floating_point()]:
        raise InputError(
            "the adapter has tensors that are not floats",
            where=str(path),
            got=f"{first_of(rounded)} ({str(tensors[rounded[0]].dtype).removeprefix('torch.')})",
            expected="float32, bfloat16 or float16, as PEFT saves them",
        )
    if wrong := [key for key, tensor in tensors.items() if not is_finite(tensor)]:
        raise InputError(
            "the adapter has weights that are not finite",
            where=str(path),
            got=first_of(wrong),
            fix="its training diverged: take an earlier checkpoint, or train with a lower learning rate",
        )
    return tensors


def refuse_other_settings(config: LoraConfig, record: RunRecord, folder: Path) -> None:
    """Refuse an adapter whose scale or change of the base differs from its run's.

    The tensors do not show it: some initialisations also change the base when the adapter is loaded.

    Args:
        config: The adapter's configuration.
        record: The record of the run that trained it.
        folder: The adapter's folder, for the message.

    Raises:
        InputError: Its configuration has other settings than the record.
    """
    trained = record.config
    expected = {
        key: trained[setting]
        for key, setting in (("r", "rank"), ("lora_alpha", "alpha"), ("use_rslora", "rslora"))
        if setting in trained
    }
    expected |= {"rank_pattern": {}, "alpha_pattern": {}, "init_lora_weights": True}
    if wrong := [key for key, value in expected.items() if getattr(config, key) != value]:
        raise InputError(
            "the adapter's configuration has other settings than its run was trained with",
            where=str(folder / ADAPTER_CONFIG),
            got=", ".join(f"{key} {getattr(config, key)}" for key in wrong),
            expected=", ".join(f"{key} {expected[key]}" for key in wrong),
            fix="copy the whole folder again from where it was trained, or move an adapter that is not this "
            "run's out of its folder",
        )


def _unusable(path: Path, key: str, value: object, expected: str) -> InputError:
    return InputError(
        "the adapter's configuration cannot be used",
        where=str(path),
        got=f"{key} {value!r}",
        expected=expected,
    )
