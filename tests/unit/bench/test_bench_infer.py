"""``doratune bench infer`` on a tiny model: the check of the logits, the record, what is kept."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console
from torch._subclasses.fake_tensor import FakeTensorMode
from transformers import LlamaConfig, LlamaForCausalLM

from doratune.bench.config import InferBenchConfig
from doratune.bench.figures import GateError
from doratune.bench.infer import bench as infer
from doratune.bench.infer.cases import InferEntry, InferFile, read_infer
from doratune.bench.infer.gate import check_logits
from doratune.bench.infer.providers import PROVIDERS, Writer, build
from doratune.bench.table import infer_renderable
from doratune.errors import InputError
from doratune.records.bench import InferBenchRecord, InferCase
from doratune.training.config import LLAMA_TARGETS

VOCABULARY, WIDTH, INNER = 64, 48, 96
LAYERS = 2
PROMPTS = torch.arange(1, 9).view(2, 4)


def small_case(**changes: Any) -> InferCase:
    values = {"name": "small", "batch": 2, "prompt_tokens": 4, "new_tokens": 3, "rank": 4, "alpha": 8}
    return InferCase(**{**values, "dtype": "float32", **changes})


def base(case: InferCase) -> LlamaForCausalLM:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=WIDTH,
        intermediate_size=INNER,
        num_hidden_layers=LAYERS,
        num_attention_heads=2,
    )
    return LlamaForCausalLM(config).to(getattr(torch, case.dtype)).eval()


@pytest.fixture
def loads(monkeypatch: pytest.MonkeyPatch) -> None:
    class Loaded:
        def __init__(self, dtype: str) -> None:
            self.model = base(small_case(dtype=dtype))

    entry = InferEntry.model_validate(
        {**small_case().model_dump(), "targets": {"peft-lora": 0.0, "doratune-lora": 99.0}}
    )
    file = InferFile(targets_for="doratune-dora", cases=[entry])
    monkeypatch.setattr(infer, "load_model", lambda name, dtype: Loaded(dtype))
    monkeypatch.setattr(infer, "refuse_unknown_model", lambda name: None)
    monkeypatch.setattr(infer, "read_infer", lambda: file)


def writers_of(case: InferCase) -> dict[str, Writer]:
    model = base(case)
    return {provider.name: build(provider, model, case, PROMPTS) for provider in PROVIDERS}


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_every_provider_has_the_logits_of_stock_peft(dtype: Any) -> None:
    found = check_logits(writers_of(small_case(dtype=dtype)), dtype)
    assert list(found) == ["merged", "peft-dora-cache", "doratune-lora", "doratune-dora"]
    assert found["peft-dora-cache"].error == 0
    if dtype == "float32":
        assert all(one.same_tokens == 1 and one.error < 1e-5 for one in found.values())


def test_adapters_change_the_output_and_differ() -> None:
    writers = writers_of(small_case())
    logits = {
        name: writers[name].generate(return_dict_in_generate=True, output_logits=True).logits[0]
        for name in ("base", "peft-lora", "peft-dora")
    }
    for name, other in (("base", "peft-lora"), ("base", "peft-dora"), ("peft-lora", "peft-dora")):
        assert (logits[name] - logits[other]).norm() > 0.01 * logits[name].norm()


@pytest.mark.parametrize("broken", ["doratune-dora", "merged"])
def test_wrong_logits_give_no_figures(broken: str) -> None:
    writers = writers_of(small_case())
    with torch.no_grad():
        layer = writers[broken].model.get_submodule(
            ("" if broken == "merged" else "base_model.model.") + "model.layers.1.mlp.down_proj"
        )
        name = "weight" if broken == "merged" else "lora_B.default.weight"
        layer.get_parameter(name).mul_(1.1)
    with pytest.raises(GateError, match=f"{broken} and peft-dora"):
        check_logits(writers, "float32")


def test_the_record(loads: None, tmp_path: Path) -> None:
    path = tmp_path / "infer.json"
    config = InferBenchConfig(rounds=2, threads=1, output=path)
    record = infer.bench_infer(config)
    (result,) = record.results
    of = {one.provider: one for one in result.providers}
    assert list(of) == [provider.name for provider in PROVIDERS]
    for one in of.values():
        timing = one.milliseconds
        assert timing.count == 2
        assert one.tokens_per_second == pytest.approx(2 * 3 / timing.median * 1e3)
    assert of["base"].error is None and of["peft-dora"].error is None
    assert {one.against: one.met for one in result.verdicts} == {"peft-lora": False, "doratune-lora": True}
    assert InferBenchRecord.model_validate_json(path.read_text(), strict=True) == record
    with pytest.raises(InputError, match="--overwrite"):
        infer.bench_infer(config)
    console = Console(file=io.StringIO(), width=80)
    console.print(infer_renderable(record))
    text = console.file.getvalue()  # type: ignore[attr-defined]
    assert "targets: 1 of 2 met" in text and all(name in text for name in of)


def test_what_is_kept(loads: None) -> None:
    """PEFT's cache holds each layer's update and norm; the engine no tensor of W's size."""
    (result,) = infer.bench_infer(InferBenchConfig(rounds=1, threads=1)).results
    of = {one.provider: one for one in result.providers}
    sizes = {"q_proj": (WIDTH, WIDTH), "k_proj": (WIDTH, WIDTH), "v_proj": (WIDTH, WIDTH)}
    sizes |= {"up_proj": (INNER, WIDTH), "down_proj": (WIDTH, INNER)}
    assert set(sizes) == set(LLAMA_TARGETS)
    updates = 4 * LAYERS * sum(d_out * d_in for d_out, d_in in sizes.values())
    outputs = 4 * LAYERS * sum(d_out for d_out, _ in sizes.values())
    assert of["peft-dora-cache"].kept_bytes == updates + outputs
    assert of["doratune-dora"].kept_bytes <= 2 * outputs + 64
    for name in ("base", "merged", "peft-lora", "peft-dora", "doratune-lora"):
        assert of[name].kept_bytes <= 64
    factors = 4 * 4 * LAYERS * sum(map(sum, sizes.values()))
    assert of["peft-lora"].adapter_bytes == of["doratune-lora"].adapter_bytes == factors
    assert of["doratune-dora"].adapter_bytes == factors + outputs
    assert of["merged"].adapter_bytes == of["base"].adapter_bytes == 0


def test_tensors_without_memory_are_not_counted() -> None:
    with FakeTensorMode():
        fake = torch.ones(1000)
    before = infer._live_bytes()
    kept = torch.ones(1000)
    assert infer._live_bytes() - before == kept.nbytes == fake.nbytes


def test_the_cases_that_ship() -> None:
    file = read_infer()
    assert {(entry.batch, entry.dtype) for entry in file.cases} == {
        (batch, dtype) for batch in (1, 32) for dtype in ("float32", "bfloat16")
    }
    for entry in file.cases:
        assert {one.against: one.at_most for one in file.targets(entry)}["doratune-lora"] == 1.05
    with pytest.raises(InputError, match="did you mean batch1"):
        file.select(["batch"])
