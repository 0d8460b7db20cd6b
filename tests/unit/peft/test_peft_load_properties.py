"""Whatever an adapter's folder holds: it is loaded whole, or refused in one message."""

from __future__ import annotations

import json
import shutil
import warnings
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM

from doratune.errors import InputError
from doratune.peft.load import load_adapter
from doratune.records.adapter_folder import WEIGHTS

tried = settings(
    max_examples=40,
    deadline=timedelta(seconds=5),
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
IDS = torch.arange(2, 14).reshape(2, 6)
LINEAR = st.sampled_from(["lora_A", "lora_B", "lora_magnitude_vector", "layers.0", "layers.1", "base_model."])
VALUES = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-2, 9),
    st.floats(),
    st.text(max_size=9),
    st.lists(st.text(max_size=5), max_size=2),
    st.dictionaries(st.text(max_size=5), st.integers(0, 9), max_size=2),
)


def base() -> LlamaForCausalLM:
    torch.manual_seed(7)
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=24,
            hidden_size=16,
            intermediate_size=16,
            num_hidden_layers=2,
            num_attention_heads=2,
            num_key_value_heads=2,
            initializer_range=0.3,
        )
    ).eval()


def outputs(model: nn.Module) -> torch.Tensor:
    with torch.no_grad():
        return model(input_ids=IDS).logits


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, torch.Tensor]:
    """A trained adapter's folder, and its model's outputs."""
    folder = tmp_path_factory.mktemp("saved") / "adapter"
    model: Any = get_peft_model(
        base(), LoraConfig(r=2, task_type="CAUSAL_LM", target_modules=["q_proj", "v_proj"], use_dora=True)
    )
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter += 0.1 * torch.randn_like(parameter)
    model.save_pretrained(folder)
    return folder, outputs(model.eval())


def loaded(folder: Path, changed: Callable[[Path], None], into: Path) -> nn.Module | None:
    """The model with a changed copy of the adapter; None if it is refused."""
    shutil.rmtree(into, ignore_errors=True)
    shutil.copytree(folder, into)
    changed(into)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            return load_adapter(base(), into).eval()
        except InputError as error:
            assert len(error.message) < 5000
            return None


def test_the_whole_folder_is_loaded(saved: tuple[Path, torch.Tensor], tmp_path: Path) -> None:
    model = loaded(saved[0], lambda _: None, tmp_path / "copy")
    assert model is not None
    torch.testing.assert_close(outputs(model), saved[1])


@tried
@given(data=st.data())
def test_no_part_of_the_file_may_be_missing_or_called_otherwise(
    saved: tuple[Path, torch.Tensor], tmp_path: Path, data: Any
) -> None:
    tensors = load_file(saved[0] / WEIGHTS)
    some = data.draw(st.lists(st.sampled_from(sorted(tensors)), min_size=1, unique=True))
    how = data.draw(st.sampled_from(["drop", "rename", "transpose", "cut", "not finite"]))
    part = data.draw(LINEAR)

    def change(folder: Path) -> None:
        found = dict(tensors)
        for key in some:
            tensor = found.pop(key)
            if how == "rename":
                found[key.replace(part, "other.")] = tensor
            elif how == "transpose":
                found[key] = tensor.T.contiguous() if tensor.ndim == 2 else tensor[None].contiguous()
            elif how == "cut":
                found[key] = tensor[:-1].clone()
            elif how == "not finite":
                found[key] = torch.full_like(tensor, torch.nan)
        same = found.keys() == tensors.keys() and all(
            found[key].shape == tensors[key].shape and found[key].isfinite().all() for key in found
        )
        assume(not same)
        save_file(found, folder / WEIGHTS)

    assert loaded(saved[0], change, tmp_path / "copy") is None


@tried
@given(at=st.integers(0, 3000), byte=st.integers(0, 255), cut=st.booleans())
def test_damaged_bytes(
    saved: tuple[Path, torch.Tensor], tmp_path: Path, at: int, byte: int, cut: bool
) -> None:
    def change(folder: Path) -> None:
        path = folder / WEIGHTS
        content = bytearray(path.read_bytes())
        at_most = min(at, len(content) - 1)
        if cut:
            del content[at_most:]
        else:
            content[at_most] = byte
        path.write_bytes(content)

    model = loaded(saved[0], change, tmp_path / "copy")
    assert model is None or (not cut and outputs(model).isfinite().all())


@tried
@given(data=st.data(), value=VALUES)
def test_any_configuration(saved: tuple[Path, torch.Tensor], tmp_path: Path, data: Any, value: Any) -> None:
    config = json.loads((saved[0] / "adapter_config.json").read_text())
    key = data.draw(st.sampled_from(sorted(config)))

    def change(folder: Path) -> None:
        (folder / "adapter_config.json").write_text(json.dumps({**config, key: value}))

    model = loaded(saved[0], change, tmp_path / "copy")
    if model is not None and key not in ("lora_alpha", "use_rslora", "alpha_pattern"):
        torch.testing.assert_close(outputs(model), saved[1])


@pytest.mark.parametrize("content", ["", "[" * 100_000, "[]", "null", '{"r": ' + "9" * 10_000 + "}", "\0"])
def test_extreme_configurations(saved: tuple[Path, torch.Tensor], tmp_path: Path, content: str) -> None:
    def change(folder: Path) -> None:
        (folder / "adapter_config.json").write_text(content)

    assert loaded(saved[0], change, tmp_path / "copy") is None
