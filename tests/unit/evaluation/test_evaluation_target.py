from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from doratune.evaluation.config import EvalConfig
from doratune.evaluation.found import find_trained
from doratune.evaluation.target import load_target


@pytest.mark.skipif(not torch.backends.mkldnn.is_available(), reason="no oneDNN")
@pytest.mark.parametrize(
    ("dtype", "name", "otherwise"),
    [
        ("bfloat16", "AMD Zen 3", True),
        ("bfloat16", "AMD Zen 5", False),
        ("bfloat16", "Intel Ice Lake", True),
        ("bfloat16", "Intel Cooper Lake", False),
        ("float32", "AMD Zen 3", False),
        ("float32", "AMD Zen 5", True),
        ("float32", "Intel Ice Lake", False),
    ],
)
def test_layers_are_computed_by_the_fastest_products(
    dtype: str, name: str, otherwise: bool, tiny_model: Path, processor: Callable[[str], None]
) -> None:
    processor(name)
    config = EvalConfig(target=str(tiny_model), task=[], dtype=dtype)  # pyright: ignore[reportArgumentType]
    model = load_target(config, find_trained(config.target)).model
    linear = [module for module in model.modules() if isinstance(module, torch.nn.Linear)]
    assert linear and all(("forward" in vars(module)) == otherwise for module in linear)
    logits = model(torch.arange(12)[None]).logits
    assert str(logits.dtype) == f"torch.{dtype}"
    for module in linear:
        vars(module).pop("forward", None)
    plain = model(torch.arange(12)[None]).logits
    rounding = 2.0**-6 if dtype == "bfloat16" else 2.0**-20  # some of them
    assert (logits - plain).abs().max() <= rounding * plain.abs().max()
    assert torch.equal(logits, plain) or otherwise


@pytest.mark.parametrize(("dtype", "expected"), [("auto", "float32"), ("bfloat16", "bfloat16")])
def test_a_cpu_evaluates_in_float32_by_default(
    dtype: str, expected: str, tiny_model: Path, processor: Callable[[str], None]
) -> None:
    processor("Intel Sapphire Rapids")  # where training takes bfloat16
    config = EvalConfig(target=str(tiny_model), task=[], dtype=dtype)  # pyright: ignore[reportArgumentType]
    target = load_target(config, find_trained(config.target))
    assert (target.scored.weights, target.scored.merged, target.scored.dtype) == ("base", False, expected)
    assert {str(one.dtype) for one in target.model.parameters()} == {f"torch.{expected}"}
    assert target.record.model.dtype == expected
