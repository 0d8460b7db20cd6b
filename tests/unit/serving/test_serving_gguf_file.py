"""Reading and writing GGUF files."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from gguf import GGMLQuantizationType, GGUFReader, GGUFWriter, dequantize, quantize
from gguf_file import write_gguf

from doratune.errors import InputError
from doratune.serving.exporting.gguf_file import HEADER, GgufFile
from doratune.serving.exporting.gguf_types import largest_rounding, stored_bytes, stored_in
from doratune.serving.exporting.gguf_writer import Computed, Copied, GgufPlan

Type = GGMLQuantizationType
RANDOM = np.random.default_rng(0)


@pytest.fixture(scope="module")
def gguf(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_gguf(tiny_model, tmp_path_factory.mktemp("gguf") / "tiny.gguf")


def small(path: Path, **entries: int) -> Path:
    """A file with a matrix in each of some types and a vector."""
    writer = GGUFWriter(path, "llama")
    writer.add_block_count(1)
    for key, value in entries.items():
        writer.add_uint32(f"general.{key}", value)
    for kind in (Type.F32, Type.F16, Type.Q4_1):
        values = RANDOM.standard_normal((5 if kind == Type.Q4_1 else 3, 64), dtype=np.float32)
        writer.add_tensor(f"{kind.name}.weight", quantize(values, kind), raw_dtype=kind)
    writer.add_tensor("norm.weight", np.ones(7, np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def test_a_copy_is_the_same_file(gguf: Path, tmp_path: Path) -> None:
    file = GgufFile(gguf)
    plan = GgufPlan(file, [Copied(name, name) for name in file.names])
    plan.write(tmp_path / "copy.gguf")
    assert (tmp_path / "copy.gguf").read_bytes() == gguf.read_bytes()
    assert plan.size == gguf.stat().st_size


@pytest.mark.parametrize("kind", [Type.F32, Type.F16, Type.BF16, Type.Q8_0])
def test_a_computed_tensor_is_all_that_changes(kind: Type, tmp_path: Path) -> None:
    file = GgufFile(small(tmp_path / "small.gguf", file_type=3, quantization_version=2))
    values = RANDOM.standard_normal((5, 96), dtype=np.float32)
    tensors = [Copied(name, name) for name in file.names if name != "F16.weight"]
    plan = GgufPlan(file, [*tensors, Computed("F16.weight", (5, 96), kind, lambda: values)])
    plan.write(tmp_path / "new.gguf")
    new = GgufFile(tmp_path / "new.gguf")
    for one in tensors:
        assert (new.stored(one.name) == file.stored(one.name)).all() and new.type(one.name) == file.type(
            one.name
        )
    error = np.linalg.norm(new.values("F16.weight") - values) / np.linalg.norm(values)
    assert new.type("F16.weight") == kind and new.shape("F16.weight") == (5, 96)
    assert error <= largest_rounding(kind) and (kind != Type.F32 or error == 0)
    assert plan.size == (tmp_path / "new.gguf").stat().st_size
    place = file.place_of("general.file_type")
    assert place is not None
    label = {Type.F32: 0, Type.F16: 1, Type.Q8_0: 7, Type.BF16: 32}[kind]
    assert GGUFReader(new.path).fields["general.file_type"].contents() == label
    before, after = file.metadata, new.metadata
    assert before[:place] == after[:place] and before[place + 4 :] == after[place + 4 :]


def test_a_file_label_stays_where_most_weights_keep_their_type(tmp_path: Path) -> None:
    file = GgufFile(small(tmp_path / "small.gguf", file_type=15, quantization_version=2))
    changed = Computed("F16.weight", (3, 64), Type.F16, lambda: np.ones((3, 64), np.float32))
    rest = [Copied(name, name) for name in file.names if name != "F16.weight"]
    GgufPlan(file, [*rest, changed]).write(tmp_path / "new.gguf")
    assert GgufFile(tmp_path / "new.gguf").metadata == file.metadata


def test_quantised_tensors_come_with_the_version_of_their_format(tmp_path: Path) -> None:
    file = GgufFile(small(tmp_path / "small.gguf"))
    GgufPlan(file, [Copied(name, name) for name in file.names]).write(tmp_path / "new.gguf")
    new = GGUFReader(tmp_path / "new.gguf")
    assert new.fields["general.quantization_version"].contents() == 2
    assert list(new.fields)[3:-1] == list(GGUFReader(file.path).fields)[3:]


def test_parts_are_converted_like_the_whole() -> None:
    values = RANDOM.standard_normal((700, 64), dtype=np.float32)
    for kind in (Type.F32, Type.F16, Type.BF16, Type.Q8_0):
        content = b"".join(stored_in(values, kind, "w"))
        assert content == quantize(values, kind).tobytes() and len(content) == stored_bytes((700, 64), kind)


def test_q8_0_is_rounded_to_the_nearest_of_its_block() -> None:
    values = RANDOM.standard_normal((4, 64), dtype=np.float32)
    content = np.frombuffer(b"".join(stored_in(values, Type.Q8_0, "w")), np.uint8).reshape(4, -1)
    scale = np.abs(values.reshape(-1, 32).astype(np.float64)).max(axis=1) / 127
    difference = np.abs(dequantize(content, Type.Q8_0) - values).reshape(-1, 32).max(axis=1)
    assert (difference <= scale * (0.5 + 127 * 2**-11)).all()  # the scale is a float16


def test_a_value_too_large_for_f16_is_refused() -> None:
    with pytest.raises(InputError, match=r"too large for F16[\s\S]*7e\+04[\s\S]*BF16"):
        list(stored_in(np.full((1, 32), 7e4, np.float32), Type.F16, "w"))


def _cut(part: float) -> Callable[[bytes], bytes]:
    return lambda content: content[: int(len(content) * part)]


@pytest.mark.parametrize(
    "broken",
    [
        *map(_cut, (0, 1e-5, 0.01, 0.1, 0.5, 0.99)),
        lambda content: b"not a model at all" * 100,
        lambda content: HEADER.pack(b"GGUF", 3, 1 << 40, 1 << 40),
        lambda content: HEADER.pack(b"GGUF", 9, 1, 1) + content,
    ],
)
def test_a_broken_file_is_one_error(broken: Callable[[bytes], bytes], gguf: Path, tmp_path: Path) -> None:
    (tmp_path / "broken.gguf").write_bytes(broken(gguf.read_bytes()))
    with pytest.raises(InputError, match=r"cannot be read[\s\S]*broken\.gguf"):
        GgufFile(tmp_path / "broken.gguf")


def test_files_that_hold_no_model_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no such GGUF file"):
        GgufFile(tmp_path)
    with pytest.raises(InputError, match=r"one part of a model[\s\S]*llama-gguf-split --merge"):
        writer = GGUFWriter(tmp_path / "part.gguf", "llama")
        writer.add_uint16("split.count", 3)
        writer.add_tensor("norm.weight", np.ones(7, np.float32))
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
        GgufFile(tmp_path / "part.gguf")
    (tmp_path / "empty.gguf").write_bytes(HEADER.pack(b"GGUF", 3, 0, 0))
    with pytest.raises(InputError, match="has no tensors"):
        GgufFile(tmp_path / "empty.gguf")
