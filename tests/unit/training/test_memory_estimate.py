"""The memory estimated without weights is what training was measured to hold."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import LlamaConfig
from transformers.models.llama.modeling_llama import LlamaMLP

from doratune.bench.step.inputs import draw_rows, random_model
from doratune.models._internals import FakeTensorMode
from doratune.models.load import LoadedModel
from doratune.records.bench import StepBenchRecord, StepCase, StepProviderResult
from doratune.training.config import TrainConfig
from doratune.training.memory_estimate import Estimate, MemoryParts, Target, estimate_memory

RESULTS = Path(__file__).parents[3] / "benchmarks" / "results"
SMOLLM2: dict[str, Any] = {
    "hidden_size": 576,
    "intermediate_size": 1536,
    "num_hidden_layers": 30,
    "num_attention_heads": 9,
    "num_key_value_heads": 3,
    "vocab_size": 49152,
    "tie_word_embeddings": True,
}
TINY: dict[str, Any] = {**SMOLLM2, "hidden_size": 288, "intermediate_size": 512, "vocab_size": 512}
WITHIN = 0.15
CPU, GPU = Target("cpu"), Target("cuda")


def empty_model(sizes: dict[str, Any], dtype: str) -> LoadedModel:
    with FakeTensorMode(allow_non_fake_inputs=True):
        return random_model(LlamaConfig(**sizes), torch.device("cpu"), getattr(torch, dtype))


def measured(file: str, case: str) -> tuple[StepCase, dict[str, StepProviderResult]]:
    record = StepBenchRecord.model_validate_json((RESULTS / file).read_text())
    result = next(one for one in record.results if one.case.name == case)
    return result.case, {one.provider: one for one in result.providers}


def estimate(
    sizes: dict[str, Any], case: StepCase, provider: str, target: Target, tmp_path: Path, **more: Any
) -> Estimate:
    engine, _, method = provider.partition("-")
    settings: dict[str, Any] = {
        "method": method,
        "engine": engine,
        "speedups": "on" if engine == "doratune" else "off",
        "rank": case.rank,
        "alpha": float(case.alpha),
        "dropout": 0.0,
        "batch_size": case.rows,
        "dtype": case.dtype,
        "gradient_checkpointing": case.gradient_checkpointing,
        "output": tmp_path / "run",
        **more,
    }
    base = empty_model(sizes, case.dtype)
    rows = draw_rows(case, base.model.config.vocab_size)
    return estimate_memory(TrainConfig(**settings), base, rows, target)


def held(found: Estimate) -> MemoryParts:
    assert found.memory is not None
    return found.memory


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["", "-checkpointed"])
@pytest.mark.parametrize("provider", ["doratune-dora", "doratune-lora", "peft-dora", "peft-lora"])
def test_llama_7b_on_an_h200(provider: str, kind: str, tmp_path: Path) -> None:
    case, results = measured(f"step-llama7b{kind}-h200.json", f"16x512-r32{kind}")
    found = estimate({}, case, provider, GPU, tmp_path)
    assert found.trainable == results[provider].trainable
    assert held(found).total == pytest.approx(results[provider].peak_bytes, rel=WITHIN)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("file", "name"),
    [
        ("step-growth-cpu-zen4.json", "16x128-r32"),
        ("step-growth-cpu-zen4.json", "32x64-r32"),
        ("step-growth-cpu-zen4.json", "16x64-r128"),
    ],
)
@pytest.mark.parametrize("provider", ["doratune-dora", "doratune-lora"])
def test_smollm2_on_a_cpu(file: str, name: str, provider: str, tmp_path: Path) -> None:
    """With the record's own size of Python and its libraries: this process also holds pytest's."""
    case, results = measured(file, name)
    result, memory = results[provider], held(estimate(SMOLLM2, case, provider, CPU, tmp_path))
    assert result.before_bytes is not None
    process = result.before_bytes - memory.weights - memory.adapters
    assert memory.total - memory.process + process == pytest.approx(result.peak_bytes, rel=WITHIN)


CASE = StepCase(
    name="small", rows=4, tokens=32, answer_tokens=8, loss_on="answer", rank=8, alpha=16, dtype="float32"
)


def test_layers_that_are_alike_are_not_all_counted(tmp_path: Path) -> None:
    """Counting two and three of them, and adding, gives what counting all gives."""
    found = [
        estimate({**TINY, "num_hidden_layers": 6}, CASE, "doratune-dora", CPU, tmp_path, targets=targets)
        for targets in (["q_proj", "up_proj"], ["self_attn.q_proj", "mlp.up_proj"])  # all, for their dots
    ]
    parts = [{**vars(held(one)), "process": 0} for one in found]
    assert parts[0] == parts[1]
    assert (found[0].trainable, found[0].total) == (found[1].trainable, found[1].total)


SMALL = {**TINY, "num_hidden_layers": 2}
QUANTISED = 2 * (2 * 288 * 288 + 2 * 288 * 96 + 3 * 288 * 512)
"""Weights of its linear layers but the head."""


def test_every_part_is_the_size_of_its_tensors(tmp_path: Path) -> None:
    adapter = estimate(SMALL, CASE, "doratune-lora", CPU, tmp_path)
    full = estimate(SMALL, CASE, "doratune-full", CPU, tmp_path)
    packed = estimate(SMALL, CASE, "doratune-lora", GPU, tmp_path, load_in_4bit=True)
    of_adapter, of_full = held(adapter), held(full)
    assert of_adapter.adapters == 4 * adapter.trainable
    assert of_adapter.optimizer == 8 * adapter.trainable
    assert full.trainable == full.total == adapter.total - adapter.trainable
    assert of_full.adapters == 0 and of_full.optimizer == 8 * full.total
    # The rotary embedding's two buffers are not parameters.
    assert 0 <= of_full.weights - 4 * full.total < 1000
    expected = of_adapter.weights - QUANTISED * (4 - 0.5 - 1 / 64)
    assert held(packed).weights == pytest.approx(expected, rel=1e-3)


def test_accumulated_gradients_are_there_from_the_start(tmp_path: Path) -> None:
    whole = held(estimate(SMALL, CASE, "doratune-lora", CPU, tmp_path))
    halves = held(estimate(SMALL, CASE, "doratune-lora", CPU, tmp_path, micro_batch_size=2))
    assert halves.gradients == halves.adapters
    assert halves.activations < 0.6 * whole.activations


def test_ddp_holds_a_copy_of_the_gradients(tmp_path: Path) -> None:
    settings = {"batch_size": 2 * CASE.rows}
    alone = held(estimate(SMALL, CASE, "doratune-lora", GPU, tmp_path))
    ddp = held(estimate(SMALL, CASE, "doratune-lora", Target("cuda", 2), tmp_path, **settings))
    assert vars(ddp) == {**vars(alone), "working": alone.working + alone.adapters}


def test_sharding_divides_all_but_what_a_process_computes(tmp_path: Path) -> None:
    """Of all weights, gradients are most at the end of the backward pass, and shards of them are not."""
    settings = {"batch_size": 8 * CASE.rows}
    found = {
        sharding: held(
            estimate(SMALL, CASE, "doratune-full", Target("cuda", 8, sharding), tmp_path, **settings)
        )
        for sharding in ("none", "zero-2", "fsdp")
    }
    for part in ("weights", "optimizer"):
        assert vars(found["fsdp"])[part] == vars(found["none"])[part] // 8
    assert found["zero-2"].weights == found["none"].weights
    alone = estimate(SMALL, CASE, "doratune-lora", GPU, tmp_path)
    assert found["fsdp"].activations + found["fsdp"].logits > 0.9 * held(alone).activations
    accumulated = held(
        estimate(
            SMALL,
            CASE,
            "doratune-full",
            Target("cuda", 8, "fsdp"),
            tmp_path,
            batch_size=16 * CASE.rows,
            micro_batch_size=CASE.rows,
        )
    )
    assert accumulated.gradients == found["none"].optimizer // 2


def test_weights_in_4_bits_are_not_sharded(tmp_path: Path) -> None:
    settings = {"load_in_4bit": True, "batch_size": 4 * CASE.rows}
    alone = held(estimate(SMALL, CASE, "doratune-lora", GPU, tmp_path, load_in_4bit=True))
    shared = held(estimate(SMALL, CASE, "doratune-lora", Target("cuda", 4, "fsdp"), tmp_path, **settings))
    packed = QUANTISED * (0.5 + 1 / 64)
    assert shared.weights == pytest.approx(packed + (alone.weights - packed) / 4, rel=1e-3)


def test_full_fine_tuning_on_a_gpu_computes_in_bfloat16(tmp_path: Path) -> None:
    case = CASE.model_copy(update={"rows": 32, "tokens": 128})
    found = {
        dtype: held(estimate(SMALL, case, "doratune-full", GPU, tmp_path, dtype=dtype))
        for dtype in ("auto", "float32")
    }
    assert found["auto"].weights == found["float32"].weights
    assert found["auto"].activations < found["float32"].activations


def test_a_model_that_needs_values_has_no_estimate(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    known = estimate(SMALL, CASE, "doratune-lora", GPU, tmp_path)
    forward = LlamaMLP.forward

    def depends(self: LlamaMLP, x: torch.Tensor) -> torch.Tensor:
        return forward(self, x) if x.sum().item() else x

    monkeypatch.setattr(LlamaMLP, "forward", depends)
    found = estimate(SMALL, CASE, "doratune-lora", GPU, tmp_path)
    assert found == replace(known, memory=None)
    assert "the memory is not known" in caplog.text and "DataDependent" in caplog.text


def test_the_total_is_the_sum() -> None:
    assert MemoryParts(1, 2, 3, 4, 5, 6, 7, 8).total == 36
