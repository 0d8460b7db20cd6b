"""Each shipped method trains, is saved and evaluated, and the saved run scores as the trained model does."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from doratune.evaluation.config import EvalConfig
from doratune.evaluation.found import find_trained
from doratune.evaluation.target import load_target
from doratune.methods.find import get_method, method_names
from doratune.models.load import load_model
from doratune.training import train as training
from doratune.training.config import TrainConfig

IDS = torch.arange(20, 60).reshape(2, 20)
SETTINGS: dict[str, Any] = {
    "task": ["sample-boolq"],
    "rows": 12,
    "steps": 3,
    "batch_size": 4,
    "rank": 4,
    "alpha": 8.0,
    "dropout": 0.0,
    "cutoff": 512,
    "learning_rate": 5e-3,
    "dtype": "float32",
}


def logits(model: Any) -> torch.Tensor:
    with torch.no_grad():
        return model.eval()(input_ids=IDS).logits.float()


def trained(monkeypatch: pytest.MonkeyPatch, config: TrainConfig, **options: Any) -> tuple[Any, torch.Tensor]:
    """The run's record, and the logits of the trained model that is still in memory."""
    made = []
    build = training.build_trainer

    def built(*args: Any, **others: Any) -> Any:
        made.append(build(*args, **others))
        return made[-1]

    monkeypatch.setattr(training, "build_trainer", built)
    record = training.train(config, **options)
    return record, logits(made[-1][0].model)


@pytest.fixture(scope="module")
def base_logits(tiny_model: Path) -> torch.Tensor:
    return logits(load_model(str(tiny_model), dtype="float32").model)


@pytest.mark.parametrize("name", method_names())
def test_a_method_is_evaluated_as_it_was_trained(
    name: str, base_logits: torch.Tensor, tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = TrainConfig(method=name, model=str(tiny_model), output=tmp_path / "run", **SETTINGS)
    record, in_memory = trained(monkeypatch, config)
    method = get_method(name)
    assert record.method == name
    moved = (in_memory - base_logits).abs().max()
    assert moved > 1e-4, "training changed what the model computes"
    target = load_target(
        EvalConfig(target=str(config.output), task=["sample-boolq"]), find_trained(str(config.output))
    )
    torch.testing.assert_close(logits(target.model), in_memory, rtol=0, atol=1e-3 * float(moved))
    assert target.scored.merged == (method.merges != "nothing")
    engine = record.training.layers
    assert (engine is not None and engine.engine == 10 and not engine.left) == method.engine
