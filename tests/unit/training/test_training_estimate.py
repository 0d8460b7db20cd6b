"""The estimate of a step's time trains nothing."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from transformers import AutoTokenizer

from doratune.models.load import load_model
from doratune.training.callbacks import MetricsCallback, StopCallback
from doratune.training.config import TrainConfig
from doratune.training.estimate import seconds_per_step
from doratune.training.train import build_trainer


def test_a_measured_run_equals_an_unmeasured_one(tiny_model: Path, tmp_path: Path) -> None:
    """With dropout, whose random numbers would be others if the estimate drew any."""
    tokenizer = AutoTokenizer.from_pretrained(tiny_model)
    ids = [tokenizer("the sky is blue and so on")["input_ids"][: 4 + row] for row in range(8)]
    rows = Dataset.from_dict({"input_ids": ids, "labels": ids, "example": list(range(8))})
    weights = []
    for estimates in (False, True):
        output = tmp_path / str(estimates)
        output.mkdir()
        config = TrainConfig(
            model=str(tiny_model), rank=4, dropout=0.5, batch_size=4, steps=3, output=output, dtype="float32"
        )
        base = load_model(config.model, dtype="float32")
        trainer, _ = build_trainer(config, base, rows, MetricsCallback(output), StopCallback())
        if estimates:
            seconds = seconds_per_step(trainer)
            assert seconds is not None and 0 < seconds < 60
        trainer.train()
        model: Any = trainer.model
        weights.append({name: one.clone() for name, one in model.named_parameters() if one.requires_grad})
    first, second = weights
    assert all(torch.equal(first[name], second[name]) for name in first)
