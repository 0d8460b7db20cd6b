from __future__ import annotations

from pathlib import Path

import pytest
import torch

from doratune.engine import widened
from doratune.evaluation.config import EvalConfig
from doratune.evaluation.target import load_target


@pytest.mark.parametrize(("dtype", "lacks", "widens"), [("bfloat16", True, True), ("bfloat16", False, False),
                                                        ("float32", True, False)])  # fmt: skip
def test_where_bfloat16_is_slow_a_model_in_it_is_computed_in_float32(
    dtype: str, lacks: bool, widens: bool, tiny_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(widened, "_lacks_products", lambda _dtype: lacks)
    model = load_target(EvalConfig(target=str(tiny_model), task=[], dtype=dtype)).model  # pyright: ignore[reportArgumentType]
    linear = [module for module in model.modules() if isinstance(module, torch.nn.Linear)]
    assert linear and all(("forward" in vars(module)) == widens for module in linear)
    logits = model(torch.arange(12)[None]).logits
    assert str(logits.dtype) == f"torch.{dtype}"
    for module in linear:
        vars(module).pop("forward", None)
    plain = model(torch.arange(12)[None]).logits
    assert (logits - plain).abs().max() <= 2.0**-6 * plain.abs().max()  # some roundings to 8 bits
    assert torch.equal(logits, plain) or widens
