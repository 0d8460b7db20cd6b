"""A dry run changes nothing around it, and goes on where the memory cannot be estimated."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import LlamaForCausalLM

from doratune.errors import InputError
from doratune.training import rehearsal
from doratune.training.config import TrainConfig
from doratune.training.early import load_rows
from doratune.training.rehearsal import Rehearsal, rehearse


def rehearsed(model: Path, folder: Path, settings: dict[str, Any] | None = None, **how: Any) -> Rehearsal:
    given = {"rows": 40, "batch_size": 8, "epochs": 1.0, "warmup_steps": 1, "cutoff": 512, **(settings or {})}
    config = TrainConfig(model=str(model), task=["sample-boolq"], output=folder / "run", **given)
    return rehearse(config, load_rows(config), **how)


def test_rows_that_validate_are_not_trained_on(tiny_model: Path, tmp_path: Path) -> None:
    found = rehearsed(tiny_model, tmp_path, {"validation_share": 0.2})
    assert (found.rows, found.steps) == (32, 4)


def test_a_gpu_is_estimated_on_the_cpu_and_stays_visible(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    before = dict(os.environ)
    found = rehearsed(tiny_model, tmp_path)
    assert found.target.device == "cuda" and found.seconds is None and found.peak_bytes
    assert dict(os.environ) == before


@pytest.mark.parametrize(
    ("settings", "how", "message"),
    [
        ({}, {"sharding": "fsdp"}, "one process has nothing to divide"),
        ({"device_map": "auto"}, {"processes": 2}, "spread over devices or trained by several processes"),
        ({}, {"processes": 3}, "cannot be divided evenly"),
    ],
)
def test_what_a_run_could_not_do_is_refused(
    settings: dict[str, Any], how: dict[str, Any], message: str, tiny_model: Path, tmp_path: Path
) -> None:
    with pytest.raises(InputError, match=message):
        rehearsed(tiny_model, tmp_path, settings, **how)


@pytest.mark.parametrize("where", ["created", "estimated"])
def test_a_model_without_an_estimate_is_rehearsed(
    where: str,
    tiny_model: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    create = LlamaForCausalLM.__init__

    def reads_a_value(self: LlamaForCausalLM, config: Any, **more: Any) -> None:
        create(self, config, **more)
        if not self.lm_head.weight.is_meta:  # transformers creates a model that it loads on this device
            self.lm_head.weight.sum().item()

    def fails(*_: object) -> None:
        raise NotImplementedError("an operation")

    if where == "created":
        monkeypatch.setattr(LlamaForCausalLM, "__init__", reads_a_value)
    else:
        monkeypatch.setattr(rehearsal, "estimate_memory", fails)
    found = rehearsed(tiny_model, tmp_path)
    assert found.size is None and found.peak_bytes is None
    assert found.steps == 5 and found.seconds is not None
    assert "the memory is not known" in caplog.text
