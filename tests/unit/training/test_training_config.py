"""How many steps a run has, and how many of them warm up."""

from __future__ import annotations

from pathlib import Path

import pytest

from doratune.errors import InputError
from doratune.training.config import WARMUP_SHARE, TrainConfig
from doratune.training.early import refuse_early


def config(**settings: object) -> TrainConfig:
    return TrainConfig.model_validate({"output": Path("run"), **settings})


@pytest.mark.parametrize(("steps", "warmup"), [(1, 0), (8, 0), (11, 1), (100, 3), (1770, 53)])
def test_the_warm_up_is_a_share_of_the_steps(steps: int, warmup: int) -> None:
    assert config().warmup(steps) == warmup < steps


def test_a_given_warm_up_is_kept_or_refused() -> None:
    assert config(warmup_steps=0).warmup(1000) == 0
    assert config(warmup_steps=100).warmup(101) == 100
    with pytest.raises(InputError, match="100 warm-up steps of 100 in all"):
        config(warmup_steps=100).warmup(100)


def test_the_help_states_the_share() -> None:
    from pydantic.fields import FieldInfo

    field: FieldInfo = TrainConfig.model_fields["warmup_steps"]
    assert field.default is None
    source = Path(__file__).parents[3] / "src/doratune/training/config.py"
    assert f"None: {100 * WARMUP_SHARE:g} % of all steps" in source.read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("rows", "epochs", "steps"), [(16, 1.0, 1), (17, 1.0, 2), (40, 0.5, 2), (80, 0.5, 3)]
)
def test_steps_are_those_that_transformers_takes(rows: int, epochs: float, steps: int) -> None:
    """It rounds up: half of three batches are two steps, half of five are three."""
    assert config(epochs=epochs).total_steps(rows) == steps


@pytest.mark.parametrize(
    ("name", "told"),
    [("tensorbord", r"unknown tracker(.|\n)*did you mean tensorboard"), ("comet_ml", "not installed")],
)
def test_a_tracker_that_cannot_be_used_is_refused_early(name: str, told: str, tmp_path: Path) -> None:
    config = TrainConfig(task=["sample-boolq"], output=tmp_path / "run", report_to=[name])
    with pytest.raises(InputError, match=told):
        refuse_early(config)
