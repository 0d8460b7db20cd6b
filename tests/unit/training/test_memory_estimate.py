"""The memory estimated without weights is what training was measured to hold."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import LlamaConfig

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


def empty_model(sizes: dict[str, Any], dtype: str) -> LoadedModel:
    with FakeTensorMode(allow_non_fake_inputs=True):
        return random_model(LlamaConfig(**sizes), torch.device("cpu"), getattr(torch, dtype))


def measured(file: str, case: str) -> tuple[StepCase, dict[str, StepProviderResult]]:
    record = StepBenchRecord.model_validate_json((RESULTS / file).read_text())
    result = next(one for one in record.results if one.case.name == case)
    return result.case, {one.provider: one for one in result.providers}


def estimate(
    sizes: dict[str, Any], case: StepCase, provider: str, device: str, tmp_path: Path, **more: Any
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
    return estimate_memory(TrainConfig(**settings), base, rows, Target(device))


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["", "-checkpointed"])
@pytest.mark.parametrize("provider", ["doratune-dora", "doratune-lora", "peft-dora", "peft-lora"])
def test_llama_7b_on_an_h200(provider: str, kind: str, tmp_path: Path) -> None:
    case, results = measured(f"step-llama7b{kind}-h200.json", f"16x512-r32{kind}")
    found = estimate({}, case, provider, "cuda", tmp_path)
    assert found.trainable == results[provider].trainable
    assert found.memory.total == pytest.approx(results[provider].peak_bytes, rel=WITHIN)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("file", "name"),
    [
        ("step-growth-cpu-zen4.json", "16x128-r32"),
        ("step-growth-cpu-zen4.json", "32x64-r32"),
        ("step-growth-cpu-zen4.json", "16x64-r128"),
        ("step-float32-cpu-zen3.json", "16x64-r32-fp32"),
    ],
)
@pytest.mark.parametrize("provider", ["doratune-dora", "doratune-lora"])
def test_smollm2_on_a_cpu(file: str, name: str, provider: str, tmp_path: Path) -> None:
    """With the record's own size of Python and its libraries: this process also holds pytest's."""
    case, results = measured(file, name)
    result, memory = results[provider], estimate(SMOLLM2, case, provider, "cpu", tmp_path).memory
    assert result.before_bytes is not None
    process = result.before_bytes - memory.weights - memory.adapters
    assert memory.total - memory.process + process == pytest.approx(result.peak_bytes, rel=WITHIN)


CASE = StepCase(
    name="small", rows=4, tokens=32, answer_tokens=8, loss_on="answer", rank=8, alpha=16, dtype="float32"
)


def test_layers_that_are_alike_are_not_all_counted(tmp_path: Path) -> None:
    """Counting two and three of them, and adding, gives what counting all gives."""
    found = [
        estimate({**TINY, "num_hidden_layers": 6}, CASE, "doratune-dora", "cpu", tmp_path, targets=targets)
        for targets in (["q_proj", "up_proj"], ["self_attn.q_proj", "mlp.up_proj"])  # all, for their dots
    ]
    parts = [{**vars(one.memory), "process": 0} for one in found]
    assert parts[0] == parts[1]
    assert (found[0].trainable, found[0].total) == (found[1].trainable, found[1].total)


def test_every_part_is_the_size_of_its_tensors(tmp_path: Path) -> None:
    sizes = {**TINY, "num_hidden_layers": 2}
    adapter = estimate(sizes, CASE, "doratune-lora", "cpu", tmp_path)
    full = estimate(sizes, CASE, "doratune-full", "cpu", tmp_path)
    packed = estimate(sizes, CASE, "doratune-lora", "cuda", tmp_path, load_in_4bit=True)
    assert adapter.memory.adapters == 4 * adapter.trainable
    assert adapter.memory.optimizer == 8 * adapter.trainable
    assert full.trainable == full.total == adapter.total - adapter.trainable
    assert full.memory.adapters == 0 and full.memory.optimizer == 8 * full.total
    # The rotary embedding's two buffers are not parameters.
    assert 0 <= full.memory.weights - 4 * full.total < 1000
    quantised = sum(size for size in (2 * (2 * 288 * 288 + 2 * 288 * 96 + 3 * 288 * 512),))
    assert packed.memory.weights == pytest.approx(
        adapter.memory.weights - quantised * (4 - 0.5 - 1 / 64), rel=1e-3
    )


def test_accumulated_gradients_are_there_from_the_start(tmp_path: Path) -> None:
    sizes = {**TINY, "num_hidden_layers": 2}
    whole = estimate(sizes, CASE, "doratune-lora", "cpu", tmp_path).memory
    halves = estimate(sizes, CASE, "doratune-lora", "cpu", tmp_path, micro_batch_size=2).memory
    assert halves.gradients == halves.adapters
    assert halves.activations < 0.6 * whole.activations


def test_the_total_is_the_sum() -> None:
    assert MemoryParts(1, 2, 3, 4, 5, 6, 7, 8).total == 36
