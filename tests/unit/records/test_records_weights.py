"""Weights are told apart by their names, types, shapes and values, and by nothing else."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from doratune.errors import InputError
from doratune.records.weights import checked_weights, weights_checksum

Tensors = dict[str, Tensor]


def tensors() -> Tensors:
    torch.manual_seed(0)
    return {"b": torch.randn(3, 4), "a": torch.randn(5).bfloat16(), "empty": torch.zeros(0, 2)}


def checksum(folder: Path, *files: Tensors, **metadata: str) -> str:
    folder.mkdir()
    for number, content in enumerate(files):
        save_file(content, folder / f"model-{number}.safetensors", metadata=metadata)
    return weights_checksum(folder)


def rewritten(folder: Path, content: Tensors) -> str:
    """The checksum of a file with another order, in the header and of the values, and with spaces in it."""
    header, values = {}, b""
    for name in reversed(sorted(content)):
        one = content[name].contiguous()
        raw = bytes(one.flatten().view(torch.uint8).numpy())
        kind = {torch.float32: "F32", torch.bfloat16: "BF16"}[one.dtype]
        header[name] = {
            "shape": list(one.shape),
            "data_offsets": [len(values), len(values) + len(raw)],
            "dtype": kind,
        }
        values += raw
    text = json.dumps(header, indent=1).encode()
    folder.mkdir()
    (folder / "model.safetensors").write_bytes(len(text).to_bytes(8, "little") + text + values)
    return weights_checksum(folder)


def test_the_content_counts_and_nothing_else(tmp_path: Path) -> None:
    found = checksum(tmp_path / "one", tensors())
    assert found == checksum(tmp_path / "again", tensors(), format="pt")
    assert found == rewritten(tmp_path / "rewritten", tensors())
    content = tensors()
    assert found == checksum(tmp_path / "shards", {"b": content.pop("b")}, content)


def change_value(content: Tensors) -> None:
    content["b"].view(torch.int32)[2, 3] ^= 1  # the last bit of one value


CHANGES: dict[str, Callable[[Tensors], object]] = {
    "a value": change_value,
    "a name": lambda content: content.update(c=content.pop("b")),
    "a shape": lambda content: content.update(b=content["b"].view(4, 3)),
    "a type": lambda content: content.update(b=content["b"].view(torch.int32)),
    "two values in place of each other": lambda content: content.update(b=content["b"].flip(0)),
    "the sign of a zero": lambda content: content.update(b=content["b"] * 0.0),
    "a tensor less": lambda content: content.pop("empty"),
}


@pytest.mark.parametrize("what", CHANGES)
def test_a_changed_weight_changes_the_checksum(what: str, tmp_path: Path) -> None:
    content = tensors()
    CHANGES[what](content)
    found = checksum(tmp_path / "one", tensors())
    assert checksum(tmp_path / "other", content) != found
    with pytest.raises(InputError, match="not those that its training left"):
        checked_weights(tmp_path / "other", found)
    assert checked_weights(tmp_path / "other", None) == weights_checksum(tmp_path / "other")


@pytest.mark.parametrize(
    "content",
    [b"", b"x", b"\xff" * 64, (7).to_bytes(8, "little") + b'{"a": 1}', (2).to_bytes(8, "little") + b"[]"],
)
def test_broken_files_are_one_error(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "model.safetensors").write_bytes(content)
    with pytest.raises(InputError, match=r"weights cannot be read(.|\n)*model\.safetensors"):
        weights_checksum(tmp_path)


def test_a_file_that_is_cut_off_is_one_error(tmp_path: Path) -> None:
    save_file(tensors(), tmp_path / "model.safetensors")
    whole = (tmp_path / "model.safetensors").read_bytes()
    (tmp_path / "model.safetensors").write_bytes(whole[:-1])
    with pytest.raises(InputError, match="is not whole"):
        weights_checksum(tmp_path)


def test_a_tensor_in_two_files_is_one_error(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"two files hold one tensor"):
        checksum(tmp_path / "twice", tensors(), tensors())
