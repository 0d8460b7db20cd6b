"""Reading and checking a saved PEFT adapter without its model."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields
from functools import cache
from pathlib import Path
from typing import Any

from peft import PEFT_TYPE_TO_CONFIG_MAPPING, LoraConfig, PeftConfig
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from doratune.errors import InputError, first_of
from doratune.finite import is_finite
from doratune.records.adapter_folder import (
    WEIGHTS,
    read_adapter_settings,
    refuse_other_methods,
    refuse_pickle,
    told_settings,
)
from doratune.records.layout import ADAPTER_CONFIG
from doratune.records.run import RunRecord

NEEDS_MORE = frozenset(
    {"AdaLoraConfig", "AdamssConfig", "OSFConfig", "PolyConfig", "ShadowConfig", "XLoraConfig"}
)
"""Configurations of adapters that train with more than a loss and a backward pass, or need further inputs."""


@cache
def config_classes() -> dict[str, type[Any]]:
    """The installed PEFT's configurations of adapters on layers, by the name of their class."""
    return {
        kind.__name__: kind
        for kind in PEFT_TYPE_TO_CONFIG_MAPPING.values()
        if "target_modules" in {field.name for field in fields(kind)} and kind.__name__ not in NEEDS_MORE
    }


def read_lora_config(folder: Path) -> LoraConfig:
    """Read ``folder``/adapter_config.json of a LoRA or DoRA adapter.

    Raises:
        InputError: As for ``read_adapter_config``, or it is of another PEFT method.
    """
    refuse_other_methods(read_adapter_settings(folder), folder)
    config = read_adapter_config(folder)
    assert isinstance(config, LoraConfig)
    return config


def read_adapter_config(folder: Path) -> PeftConfig:
    """Read ``folder``/adapter_config.json.

    Args:
        folder: A PEFT adapter on layers, of any method.

    Returns:
        The configuration. A key that this PEFT does not know is left out only if it switches nothing on.

    Raises:
        InputError: It is missing or broken, of a PEFT method without layers to adapt, or uses a key unknown
            to this PEFT.
    """
    path = folder / ADAPTER_CONFIG
    values = read_adapter_settings(folder)
    kind = PEFT_TYPE_TO_CONFIG_MAPPING.get(values["peft_type"])
    if kind is None or kind.__name__ not in config_classes():
        raise InputError(
            "the adapter's method is not one that doratune knows",
            where=str(path),
            got=f"peft_type {values['peft_type']}",
            expected="LORA, which is LoRA's and DoRA's, or another method of PEFT that adapts layers",
        )
    known = {field.name for field in fields(kind)}
    strange = [key for key, value in values.items() if key not in known and value]
    if strange:
        raise InputError(
            "the adapter's configuration has keys that the installed PEFT does not know",
            where=str(path),
            got=", ".join(strange),
            expected=f"keys of {kind.__name__}",
            fix=f"install the PEFT that saved it ({values.get('peft_version') or 'a newer version'})",
        )
    for key, kinds in (("r", (int,)), ("lora_alpha", (int, float))) if kind is LoraConfig else ():
        value = values.get(key, 1)
        if not isinstance(value, kinds) or isinstance(value, bool) or value <= 0:
            raise _unusable(path, key, value, "a positive number")
    switches = [field.name for field in fields(kind) if field.type in ("bool", bool)]
    for key in switches:
        if not isinstance(values.get(key), bool | None):  # PEFT takes any text as true, even "false"
            raise _unusable(path, key, values[key], "true or false")
    if not isinstance(values.get("base_model_name_or_path", ""), str | None):
        raise _unusable(path, "base_model_name_or_path", values["base_model_name_or_path"], "a text")
    try:
        return kind(**{key: value for key, value in values.items() if key in known - {"runtime_config"}})
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


def refuse_other_settings(record: RunRecord, folder: Path) -> None:
    """Refuse an adapter that computes something else than its run's, such as one with another scale.

    The tensors do not show it: some initialisations also change the base when the adapter is loaded.

    Args:
        record: The record of the run that trained it.
        folder: The adapter's folder.

    Raises:
        InputError: Its configuration cannot be read, or has other settings than the record.
    """
    found = vars(read_adapter_config(folder))
    if record.adapter is not None:
        refuse_changed_settings(record.adapter, folder)
        return
    names = {"rank": "r", "alpha": "lora_alpha", "rslora": "use_rslora"}  # a record of an older version
    expected = {key: record.config[setting] for setting, key in names.items() if setting in record.config}
    expected |= {"rank_pattern": {}, "alpha_pattern": {}, "init_lora_weights": True}
    _refuse_unequal(found, expected, folder)


def refuse_changed_settings(expected: Mapping[str, Any], folder: Path) -> None:
    """Refuse an adapter with other settings than its run's.

    Args:
        expected: What ``told_settings`` gave for the run's.
        folder: The adapter's folder.

    Raises:
        InputError: They differ.
    """
    found = told_settings(read_adapter_settings(folder))
    _refuse_unequal(found, {**dict.fromkeys(found), **expected}, folder)


def _refuse_unequal(found: Mapping[str, Any], expected: Mapping[str, Any], folder: Path) -> None:
    if wrong := [key for key, value in expected.items() if found.get(key) != value]:
        raise InputError(
            "the adapter's configuration has other settings than its run was trained with",
            where=str(folder / ADAPTER_CONFIG),
            got=", ".join(f"{key} {found.get(key)}" for key in wrong),
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
