from __future__ import annotations

from pathlib import Path

import pytest
import torch

from doratune.engine import products, widened
from doratune.evaluation.config import EvalConfig
from doratune.evaluation.target import find_trained, load_target


@pytest.mark.skipif(not torch.backends.mkldnn.is_available(), reason="no oneDNN")
@pytest.mark.parametrize(
    ("dtype", "lacks", "faster", "otherwise"),
    [
        ("bfloat16", True, False, True),
        ("bfloat16", False, True, False),
        ("float32", True, False, False),
        ("float32", False, True, True),
    ],
)
def test_layers_are_computed_by_the_fastest_products(
    dtype: str, lacks: bool, faster: bool, otherwise: bool, tiny_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(widened, "_lacks_products", lambda _dtype: lacks)
    monkeypatch.setattr(products, "_is_faster_here", lambda: faster)
    monkeypatch.setattr(products, "_has_amx", lambda: False)
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
