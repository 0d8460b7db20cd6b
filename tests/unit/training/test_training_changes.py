"""How far training moved the weights, from step 0."""

from __future__ import annotations

import logging

import pytest
import torch
from torch import nn

from doratune.errors import DoratuneError
from doratune.training.changes import SAMPLE, changes_since, starting_point


def test_changes_are_those_of_the_elements(caplog: pytest.LogCaptureFixture) -> None:
    torch.manual_seed(0)
    model = nn.ModuleDict({"lora_A": nn.Linear(3, 4, bias=False), "part": nn.Linear(4, 2)})
    names = {name for name, _ in model.named_parameters()}
    outer = nn.ModuleDict({"layer": model})
    outer.layer.part.bias.requires_grad_(False)
    start = starting_point(outer)
    assert len(start) == len(names) - 1
    moved = torch.randn(4, 3)
    with torch.no_grad():
        model["lora_A"].weight += moved
        model["part"].weight[0, 0] += 0.5
        model["part"].bias += 1.0
    with caplog.at_level(logging.INFO, logger="doratune"):
        found = changes_since(start, outer)
    assert found is not None and found.keys() == {"A", "W"}
    assert found["A"].largest == pytest.approx(float(moved.abs().max()), rel=1e-6)
    assert found["A"].rms == pytest.approx(float(moved.double().square().mean().sqrt()), rel=1e-5)
    assert (found["W"].largest, found["W"].elements) == (pytest.approx(0.5), 8)
    assert "root mean square (largest): A " in caplog.text and ", W 0.18 (0.5)" in caplog.text


def test_nothing_moved() -> None:
    outer = nn.ModuleDict({"part": nn.Linear(3, 4)})
    with pytest.raises(DoratuneError, match="changed no weight") as caught:
        changes_since(starting_point(outer), outer)
    assert caught.value.exit_code == 1


def test_large_weights_of_the_base_are_sampled() -> None:
    outer = nn.ModuleDict({"part": nn.Linear(1024, 300, bias=False)})
    start = starting_point(outer)
    with torch.no_grad():
        outer["part"].weight += 0.25
    found = changes_since(start, outer)
    assert found is not None and SAMPLE / 2 < found["W"].elements <= SAMPLE
    assert found["W"].of == 1024 * 300 and found["W"].largest == pytest.approx(0.25, rel=1e-5)
    assert sum(one.numel() for one in start.values()) == found["W"].elements


def test_a_sharded_model_is_not_measured(caplog: pytest.LogCaptureFixture) -> None:
    whole, part = (nn.ModuleDict({"part": nn.Linear(size, 4)}) for size in (8, 4))
    assert changes_since(starting_point(whole), part) is None and "not measured" in caplog.text
