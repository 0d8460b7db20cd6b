"""A model's folder, written from its base's files with some parameters changed, one tensor at a time."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import AutoTokenizer

from doratune.errors import InputError, first_of
from doratune.finite import is_finite
from doratune.models.on_disk import ModelOnDisk
from doratune.models.weights import DTYPES, INDEX, SINGLE, WeightFiles
from doratune.records.files import write_json_atomic
from doratune.records.layout import MODEL_CONFIG
from doratune.serving._internals import cached_file
from doratune.serving.files import TensorFile, size_of
from doratune.strict_json import read_object

TOKENIZER_FILES = ("tokenizer_config.json", "tokenizer.json", "tokenizer.model")
"""One of them is in every folder with a tokenizer."""
GENERATION_CONFIG = "generation_config.json"


@dataclass(frozen=True)
class Written:
    """One tensor that will be written.

    Attributes:
        dtype: Its type.
        shape: Its shape.
        parameter: The parameter that it is the new value of; None: the base's own tensor.
    """

    dtype: torch.dtype
    shape: tuple[int, ...]
    parameter: str | None


@dataclass(frozen=True)
class Plan:
    """The files of a model.

    Attributes:
        shards: Each file's tensors by their names in the file.
    """

    shards: dict[str, dict[str, Written]]

    @property
    def size(self) -> int:
        """Bytes of all tensors."""
        return sum(size_of(one.dtype, one.shape) for shard in self.shards.values() for one in shard.values())

    def dtype(self, parameters: Collection[str]) -> str:
        """The type that most of these parameters are written in, by their elements."""
        return _most((one for one in self._all() if one.parameter in parameters), "float32")

    @property
    def main_dtype(self) -> str:
        """The type of most of the model's weights."""
        return _most((one for one in self._all() if one.dtype.is_floating_point), "float32")

    def rounded_types(self, files: WeightFiles, names: Iterable[str]) -> dict[str, torch.dtype]:
        """The types of the parameters that are rounded: those with new values, or of another type.

        Args:
            files: The base's files.
            names: The model's parameters.
        """
        found = {one.parameter: one.dtype for one in self._all() if one.parameter is not None}
        written = {key: one for shard in self.shards.values() for key, one in shard.items()}
        for name in names:
            for key in files.source(name).keys if name not in found else ():
                if DTYPES[files.tensors[key].dtype] != written[key].dtype:
                    found[name] = written[key].dtype
        return found

    def _all(self) -> Iterable[Written]:
        return (one for shard in self.shards.values() for one in shard.values())


def _most(tensors: Iterable[Written], default: str) -> str:
    elements: dict[str, int] = {}
    for one in tensors:
        name = str(one.dtype).removeprefix("torch.")
        elements[name] = elements.get(name, 0) + torch.Size(one.shape).numel()
    return max(elements, key=elements.__getitem__, default=default)


def plan_model(
    base: ModelOnDisk, changed: Collection[str], untied: Collection[str], dtype: torch.dtype | None
) -> Plan:
    """Decide which tensors are written to which file: those of the base's files, under their names.

    Args:
        base: The base model.
        changed: Parameters with new values.
        untied: Of these, those that share another's tensor in the base and get their own.
        dtype: The type of all floats; None: that of the base's files.

    Raises:
        InputError: A changed parameter is not one tensor of the files, or they have a type that is not known.
    """
    files, parameters, added = base.files, dict[str, str](), dict[str, str]()
    for name in changed:
        if name in base.tied:
            if name in files.tensors:  # the files may hold both names of a shared tensor
                parameters[name] = name
            elif name in untied:
                added[name] = base.tied[name]
            continue
        key = files.key(name)
        if key is None:
            raise InputError(
                "the adapter changes a weight that the base's files hold in parts",
                got=name,
                expected="a weight that is one tensor in the files",
                fix="merge it in memory, with PEFT's merge_and_unload",
            )
        parameters[key] = name
    if unknown := [one.dtype for one in files.tensors.values() if one.dtype not in DTYPES]:
        raise InputError("the base's files have tensors of a type that is not known", got=first_of(unknown))
    shards: dict[str, dict[str, Written]] = {one.name: {} for one in files.shards}
    for key, tensor in files.tensors.items():
        own = DTYPES[tensor.dtype]
        new = dtype if dtype is not None and own.is_floating_point else own
        shards[tensor.file.name][key] = Written(new, tensor.shape, parameters.get(key))
    for name, source in added.items():
        beside = files.key(source)
        assert beside is not None
        shard = shards[files.tensors[beside].file.name]
        shard[name] = Written(shard[beside].dtype, shard[beside].shape, name)
    return Plan(shards)


def write_weights(
    plan: Plan, files: WeightFiles, folder: Path, value: Callable[[str, torch.dtype], Tensor]
) -> dict[str, int]:
    """Write a model's weights.

    Args:
        plan: What is written.
        files: The base's files.
        folder: Where.
        value: Returns a parameter's new values in the given type.

    Returns:
        The files with their bytes.

    Raises:
        InputError: A weight is too large for the type.
    """
    for shard, tensors in plan.shards.items():
        kinds = {key: (one.dtype, one.shape) for key, one in tensors.items()}
        with TensorFile(folder / shard, kinds) as file:
            for key in file.names:
                one = tensors[key]
                if one.parameter is None:
                    file.write(key, _cast(files, key, one.dtype))
                else:
                    file.write(key, value(one.parameter, one.dtype))
    if [*plan.shards] != [SINGLE]:
        index = {key: shard for shard, tensors in plan.shards.items() for key in tensors}
        content = {"metadata": {"total_size": plan.size}, "weight_map": dict(sorted(index.items()))}
        write_json_atomic(folder / INDEX, content)
    return {shard: (folder / shard).stat().st_size for shard in plan.shards}


def rounded(values: Tensor, dtype: torch.dtype, name: str) -> Tensor:
    """Values in another type.

    Raises:
        InputError: One is too large for it.
    """
    result = values.to(dtype)
    if dtype == torch.float16 and not is_finite(result):
        raise InputError(
            "a weight is too large for the type",
            where="--dtype",
            got=name,
            fix="write it in bfloat16 or float32",
        )
    return result


def _cast(files: WeightFiles, key: str, dtype: torch.dtype) -> Tensor:
    tensor = files.tensor(key)
    return tensor if tensor.dtype == dtype else rounded(tensor, dtype, key)


def write_settings(
    base: ModelOnDisk, folder: Path, *, adapter: Path, dtype: str, untied: bool, trust_remote_code: bool
) -> None:
    """Write configuration, generation configuration and tokenizer, and copy a hub model's own code.

    Args:
        base: The base model, whose configuration is kept as it is in its file but for what changed.
        folder: Where.
        adapter: The adapter's folder, whose tokenizer is taken if it has one.
        dtype: The type of the weights.
        untied: Whether weights that the base shares are separate.
        trust_remote_code: Let a hub model run its own code.
    """
    path = _own_file(base, MODEL_CONFIG)
    assert path is not None
    config = read_object(path, "the base model's configuration")
    config.pop("quantization_config", None)
    parts = [config, *(one for one in config.values() if isinstance(one, dict) and "hidden_size" in one)]
    for part in parts:
        if names := [name for name in ("dtype", "torch_dtype") if name in part]:
            part.update(dict.fromkeys(names, dtype))
        if untied and (part is config or "tie_word_embeddings" in part):
            part["tie_word_embeddings"] = False
    if not any(name in config for name in ("dtype", "torch_dtype")):
        config["torch_dtype"] = dtype  # the name that old and new versions of transformers read
    config["architectures"] = [type(base.model).__name__]
    write_json_atomic(folder / MODEL_CONFIG, config)
    if path := _own_file(base, GENERATION_CONFIG):
        shutil.copyfile(path, folder / GENERATION_CONFIG)
    write_tokenizer(base, folder, adapter=adapter, trust_remote_code=trust_remote_code)
    for file in Path(base.place).glob("*.py") if Path(base.place).is_dir() and trust_remote_code else ():
        shutil.copyfile(file, folder / file.name)


def write_tokenizer(
    base: ModelOnDisk, folder: Path, *, adapter: Path, trust_remote_code: bool = False
) -> None:
    """Write the tokenizer of an adapter, or the base's if the adapter has none.

    Args:
        base: The base model.
        folder: Where.
        adapter: The adapter's folder.
        trust_remote_code: Let a hub model run its own code.
    """
    with_own = any((adapter / name).is_file() for name in TOKENIZER_FILES)
    tokenizer: Any = AutoTokenizer.from_pretrained(
        str(adapter) if with_own else base.place, trust_remote_code=trust_remote_code
    )
    tokenizer.save_pretrained(folder)


def _own_file(base: ModelOnDisk, name: str) -> Path | None:
    """A file of the base model's, from its folder or the hub's cache."""
    found = cached_file(base.place, name, _raise_exceptions_for_missing_entries=False)
    return None if found is None else Path(found)
