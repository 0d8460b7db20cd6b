"""Reading a model's weights from its safetensors files, some rows at a time, without loading the model."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor
from transformers import PreTrainedModel

from doratune.errors import InputError
from doratune.hub import hub_or_cache, looks_like_path
from doratune.models.builtin import BUILTIN, resolve_builtin
from doratune.models.file_names import Source, sources
from doratune.models.gguf import convert_once
from doratune.strict_json import read_object

DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "BF16": torch.bfloat16,
    "F16": torch.float16,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}
"""The types of tensors by their names in safetensors files."""
SINGLE, INDEX = "model.safetensors", "model.safetensors.index.json"
PICKLED = re.compile(r".*\.(bin|pt|pth|ckpt)")


def weights_folder(name: str, *, where: str | None = None) -> Path:
    """The folder with a model's config.json and safetensors, downloaded or converted if necessary.

    Args:
        name: What ``load_model`` takes: a built-in name, a folder, a .gguf file or a hub id.
        where: Where the user named it, for the message.

    Raises:
        InputError: If there is no such model.
    """
    path = Path(name).expanduser()
    if name in BUILTIN:
        return resolve_builtin(name)[0]
    if path.is_dir():
        return path
    if path.suffix == ".gguf":
        return convert_once(path)
    if looks_like_path(name):
        raise _not_there(name, where)
    from huggingface_hub import snapshot_download

    with hub_or_cache(name) as answer:
        try:
            return Path(snapshot_download(name, allow_patterns=["config.json", "model*.safetensors", INDEX]))
        except Exception as error:  # the hub and the network have their own exceptions
            raise _not_there(name, where, answer.failure) from error


def _not_there(name: str, where: str | None, failure: str | None = None) -> InputError:
    return InputError(
        "the base model is not there",
        where=where,
        got=f"{name} ({failure})" if failure else name,
        expected=f"a built-in name ({', '.join(BUILTIN)}), a folder, a .gguf file or a hub id",
    )


@dataclass(frozen=True)
class FileTensor:
    """A tensor in a file.

    Attributes:
        file: The file.
        dtype: Its type as safetensors writes it, such as BF16.
        shape: Its shape.
    """

    file: Path
    dtype: str
    shape: tuple[int, ...]


class WeightFiles:
    """The tensors of a model folder, by the names of the model's parameters.

    A file is open only while it is read, so that what was read of it leaves the memory again.

    Args:
        folder: Holds model.safetensors, or several files and their index.
        model: The model, with or without weights, if the files' names may differ from its own.

    Attributes:
        tensors: All tensors by their names in the files, in the files' order.

    Raises:
        InputError: If a file is missing or is not in safetensors' format.
    """

    def __init__(self, folder: Path, model: PreTrainedModel | None = None) -> None:
        self._folder = folder
        self.tensors: dict[str, FileTensor] = {}
        for file in _files(folder):
            try:
                with safe_open(str(file), framework="pt") as handle:
                    slices = {key: handle.get_slice(key) for key in handle.keys()}  # noqa: SIM118
                    self.tensors |= {
                        key: FileTensor(file, one.get_dtype(), tuple(one.get_shape()))
                        for key, one in slices.items()
                    }
            except (OSError, SafetensorError) as error:
                raise InputError(
                    "the weights cannot be read",
                    where=str(file),
                    got=str(error),
                    fix="copy or download the file again",
                ) from error
        self._sources = {} if model is None else sources(model, self.tensors)

    @property
    def main_dtype(self) -> torch.dtype:
        """The type of most of the weights that are floats; float32 if there are none."""
        elements: dict[torch.dtype, int] = {}
        for one in self.tensors.values():
            kind = DTYPES.get(one.dtype)
            if kind is not None and kind.is_floating_point:
                elements[kind] = elements.get(kind, 0) + torch.Size(one.shape).numel()
        return max(elements, key=elements.__getitem__, default=torch.float32)

    @property
    def shards(self) -> list[Path]:
        """The files."""
        return list(dict.fromkeys(one.file for one in self.tensors.values()))

    def key(self, name: str) -> str | None:
        """The name in the files of the tensor that is this parameter as it is.

        Returns:
            The name; None if the parameter is put together from several tensors, or computed from one.

        Raises:
            InputError: If the parameter is not in the files.
        """
        return self.source(name).key

    def shape(self, name: str) -> tuple[int, ...]:
        """The shape of a parameter.

        Raises:
            InputError: If it is not in the files.
        """
        source = self.source(name)
        if source.key is None:
            return tuple(source.read(name, self.tensor).shape)
        return self.tensors[source.key].shape

    def rows(self, name: str, part: slice = slice(None)) -> Tensor:
        """Some rows of a parameter, in the type of the file; only they are read.

        Raises:
            InputError: If it is not in the files.
        """
        source = self.source(name)
        if source.key is None:
            return source.read(name, self.tensor)[part]
        return self.tensor(source.key, part)

    def tensor(self, key: str, part: slice = slice(None)) -> Tensor:
        """Some rows of the tensor with this name in the files."""
        with safe_open(str(self.tensors[key].file), framework="pt") as handle:
            # A tensor without dimensions has no slices.
            return handle.get_tensor(key) if part == slice(None) else handle.get_slice(key)[part]

    def source(self, name: str) -> Source:
        """Where a parameter comes from.

        Raises:
            InputError: If it is not in the files.
        """
        if name in self._sources:
            return self._sources[name]
        # Some files leave out the model's own prefix: GPT-2's have h.0 for transformer.h.0.
        for key in (name, name.partition(".")[2]):
            if key in self.tensors:
                return Source((key,))
        raise InputError(
            "the weights hold no such parameter",
            where=str(self._folder),
            got=f"{len(self.tensors)} others",
            expected=name,
        )


def _files(folder: Path) -> list[Path]:
    if (folder / INDEX).is_file():
        return _shards(folder)
    if (folder / SINGLE).is_file():
        return [folder / SINGLE]
    refuse_pickles([file.name for file in folder.iterdir()], str(folder))
    raise InputError("the model folder holds no weights", where=str(folder), expected=f"{SINGLE} or {INDEX}")


def refuse_pickles(files: Iterable[str], place: str) -> None:
    """Refuse a model that has its weights only as pickles.

    Args:
        files: The names of its files.
        place: Its folder or hub id.

    Raises:
        InputError: If it does; the message names the first, and a command that converts them.
    """
    names = sorted(files)
    pickled = [name for name in names if PICKLED.fullmatch(name)]
    if pickled and not any(name.endswith(".safetensors") for name in names):
        raise InputError(
            "the model's weights are pickled, and unpickling runs whatever code is in the file",
            where=f"{place}/{pickled[0]}",
            expected=f"{SINGLE} or {INDEX}",
            fix=f"if you trust its origin, convert it once and name the new folder: {_conversion(place)}",
        )


def _shards(folder: Path) -> list[Path]:
    index = read_object(folder / INDEX, "the index of the weights")
    try:
        files = sorted({folder / name for name in index["weight_map"].values()})
    except (KeyError, TypeError, AttributeError) as error:
        raise InputError(
            "the index of the weights cannot be read",
            where=str(folder / INDEX),
            got=f"{type(error).__name__}: {error}",
            expected='{"weight_map": {parameter: file}}',
        ) from error
    absent = [file.name for file in files if not file.is_file()]
    if absent or not files:
        raise InputError(
            "files of the weights are missing",
            where=str(folder / INDEX),
            got=f"{len(absent)} of {len(files)} files absent: {', '.join(absent[:3])}",
            fix="copy or download the model folder again",
        )
    return files


def _conversion(place: str) -> str:
    """A shell command that writes a pickled model as safetensors next to it, or in the current folder."""
    new = f"{place if Path(place).is_dir() else Path(place).name}-safetensors"
    code = (
        "from transformers import AutoModelForCausalLM as M, AutoTokenizer as T; "
        f"M.from_pretrained({place!r}).save_pretrained({new!r}); "
        f"T.from_pretrained({place!r}).save_pretrained({new!r})"
    )
    return f"python -c {shlex.quote(code)}"
