"""Measures the fixed cost of an adapted layer: its time when matrix products are small enough to ignore.

    OMP_NUM_THREADS=1 python benchmarks/fixed_cost.py fixed-cost.json

A LLaMA of 30 layers and width 64 runs on 32 tokens, forward and backward, in one thread. Five layers of each
block have an adapter of rank 8, and all adapters change before each step, as an optimizer would change them.
LoRA and DoRA of PEFT and of the engine are first checked to give the same loss and gradients, then timed in
turn with the frozen model.
"""

from __future__ import annotations

import argparse
import copy
import statistics
import sys
import time
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, get_peft_model
from torch import Tensor, nn
from transformers import LlamaConfig, LlamaForCausalLM

from doratune.bench.figures import time_ratios
from doratune.bench.interleave import interleaved
from doratune.environment import describe_environment
from doratune.peft import enable
from doratune.records.files import write_json_atomic

LAYERS, WIDTH, TOKENS, RANK, ROUNDS = 30, 64, 32, 8, 15
TARGETS = ["q_proj", "k_proj", "v_proj", "up_proj", "down_proj"]
ADAPTED = LAYERS * len(TARGETS)
BASELINES = ("peft-lora", "peft-dora")
TOLERANCE = 1e-4


def frozen_model() -> nn.Module:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=WIDTH,
        hidden_size=WIDTH,
        intermediate_size=2 * WIDTH,
        num_hidden_layers=LAYERS,
        num_attention_heads=4,
    )
    return LlamaForCausalLM(config).requires_grad_(False)


def adapted_model(*, use_dora: bool) -> nn.Module:
    config = LoraConfig(r=RANK, use_dora=use_dora, target_modules=TARGETS)
    model = get_peft_model(frozen_model(), config)  # pyright: ignore[reportArgumentType]
    change_adapters(model)
    return model


@torch.no_grad()
def change_adapters(model: nn.Module) -> None:
    """Change every adapter a little, in the same way at every call."""
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.add_(0.01 * torch.sin(torch.arange(parameter.numel())).view_as(parameter))


def step(model: nn.Module, embeds: Tensor) -> Tensor:
    """Run one forward and backward pass and return the loss."""
    output: Any = model(inputs_embeds=embeds)
    loss = output.logits.square().mean()
    loss.backward()
    return loss.detach()


def results_of(model: nn.Module, embeds: Tensor) -> dict[str, Tensor]:
    """The loss and all gradients after two steps with a change between them."""
    step(model, embeds)
    change_adapters(model)
    clear(model, embeds)
    found = {"loss": step(model, embeds)}
    for name, parameter in model.named_parameters():
        if parameter.grad is not None:
            found[name] = parameter.grad.clone()
    assert embeds.grad is not None
    return {**found, "inputs": embeds.grad.clone()}


def clear(model: nn.Module, embeds: Tensor) -> None:
    model.zero_grad()
    embeds.grad = None


def check_same(models: dict[str, nn.Module], embeds: Tensor) -> None:
    """Stop unless the engine and PEFT give the same loss and gradients."""
    for method in ("lora", "dora"):
        expected, actual = (results_of(models[f"{who}-{method}"], embeds) for who in ("peft", "doratune"))
        for name, value in expected.items():
            error = (actual[name] - value).abs().max() / value.abs().max()
            if not error <= TOLERANCE:
                sys.exit(f"{method}: {name} differs by {error:.1e} of its largest element")


def measure() -> dict[str, dict[str, Any]]:
    """Milliseconds of a step, ratios, and microseconds that a layer adds to the frozen model's step."""
    models = {"frozen": frozen_model()}
    for method in ("lora", "dora"):
        models[f"peft-{method}"] = adapted_model(use_dora=method == "dora")
        models[f"doratune-{method}"] = copy.deepcopy(models[f"peft-{method}"])
        enable(models[f"doratune-{method}"])
    embeds = torch.randn(1, TOKENS, WIDTH, requires_grad=True)
    check_same(models, embeds)

    def timed(name: str) -> float:
        model = models[name]
        change_adapters(model)
        clear(model, embeds)
        start = time.perf_counter()
        step(model, embeds)
        return (time.perf_counter() - start) * 1e3

    times = interleaved(list(models), timed, ROUNDS)
    return {name: summary(times, name) for name in models}


def summary(times: dict[str, list[float]], name: str) -> dict[str, Any]:
    rounds, frozen = times[name], times["frozen"]
    added = {
        kind: 1e3 * (of(rounds) - of(frozen)) / ADAPTED
        for kind, of in (("median", statistics.median), ("minimum", min))
    }
    own = {other: [a - b for a, b in zip(times[other], frozen, strict=True)] for other in times}
    return {
        "milliseconds": {"median": statistics.median(rounds), "minimum": min(rounds), "rounds": rounds},
        "added_microseconds_per_layer": added,
        "added_ratios": {} if name == "frozen" else time_ratios(own, name, BASELINES),
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("output", type=Path, help="JSON file for the record")
    output = parser.parse_args().output
    torch.set_num_threads(1)
    results = measure()
    for name, found in results.items():
        added, ratios = found["added_microseconds_per_layer"], found["added_ratios"]
        text = "".join(f", {ratio:.2f} of {other}" for other, ratio in ratios.items())
        print(
            f"{name}: {found['milliseconds']['median']:.1f} ms, "
            f"{added['median']:.0f} µs a layer (minimum {added['minimum']:.0f}){text}"
        )
    write_json_atomic(
        output,
        {
            "layers": LAYERS,
            "adapted_layers": ADAPTED,
            "width": WIDTH,
            "tokens": TOKENS,
            "rank": RANK,
            "threads": torch.get_num_threads(),
            "results": results,
            "environment": describe_environment().to_dict(),
        },
    )


if __name__ == "__main__":
    main()
