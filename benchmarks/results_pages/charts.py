"""The plots of the pages."""

from __future__ import annotations

from doratune.records.bench import StepBenchRecord
from results_pages import records, words
from results_pages.bars import Bar, chart

STEP_BARS = {
    "peft-lora": "stock TRL, PEFT's LoRA",
    "peft-dora": "stock TRL, PEFT's DoRA",
    "doratune-lora": "doratune's LoRA",
    "doratune-dora": "doratune's DoRA",
}

MODELS = {"smollm2-135m": "SmolLM2-135M", "random-llama-7b": "LLaMA-7B with random weights"}


def charts() -> dict[str, str]:
    """Every plot by its file name."""
    found = [records.step("cpu-zen4"), records.step("llama7b-h200")]
    return {
        "step-time.svg": _steps("Time of a training step ÷ stock TRL with PEFT's LoRA", found, "time"),
        "step-peak.svg": _steps("Peak memory ÷ stock TRL with PEFT's LoRA", found, "peak"),
        "layers-gpu.svg": _gpu_layers(),
        "pipeline.svg": _pipelines(),
    }


def _steps(title: str, found: list[StepBenchRecord], quantity: str) -> str:
    bars = []
    for record in found:
        result = record.results[0]
        bars.append(Bar(f"{records.machine(record.machine.environment)}, {MODELS[record.model]}"))
        for name, label in STEP_BARS.items():
            value = records.provider(result, name).ratios[quantity]["peft-lora"]
            bars.append(Bar(label, value, name.startswith("doratune"), text=words.ratio(value)))
    return chart(title, bars)


def _gpu_layers() -> str:
    bars = []
    for result in records.op("h200").results:
        value = records.ratio(result, "doratune-dora", "peft-lora", "gpu")
        assert value is not None
        target = next(
            one.at_most
            for one in result.verdicts
            if (one.provider, one.quantity, one.against) == ("doratune-dora", "gpu", "peft-lora")
        )
        bars.append(Bar(result.case.name, value, target=target, text=words.ratio(value)))
    return chart("A DoRA layer on an H200 ÷ PEFT's LoRA layer (line: target)", bars)


def _pipelines() -> str:
    bars = []
    for name in ("boolq-float32-cpu-zen4", "boolq-float32-cpu-zen5", "boolq-float32-cpu-amx"):
        record = records.pipeline(name)
        bars.append(Bar(f"{records.machine(record.machine.environment)}, {record.model.dtype}"))
        for one in record.verdicts:
            if one.figure != "same_answers":
                text = f"{one.measured:.1f} times"
                bars.append(Bar(f"with {one.figure}", one.measured, target=one.at_least, text=text))
    return chart("Training and evaluation: times as fast as the original way (line: target)", bars)
