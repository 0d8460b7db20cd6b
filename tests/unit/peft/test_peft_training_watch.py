"""Adapters that seem to be trained but are not: one warning, and none for anything else."""

from __future__ import annotations

import gc
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from torch import nn
from torch.distributed.fsdp import fully_shard

import doratune
from doratune.peft import training_watch


class Small(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.last = nn.Linear(8, 8), nn.Linear(8, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.last(self.first(x).relu())


@pytest.fixture(autouse=True)
def nothing_watched() -> Iterator[None]:
    """Other tests' models that nothing has trained."""
    training_watch._watches.clear()
    yield
    training_watch._watches.clear()


@pytest.fixture
def said(caplog: pytest.LogCaptureFixture) -> Any:
    caplog.set_level(logging.WARNING, logger="doratune")
    return lambda: [record.getMessage() for record in caplog.records]


def adapted(**settings: Any) -> Any:
    model = get_peft_model(Small(), LoraConfig(target_modules=["first"], use_dora=True), **settings)
    doratune.enable(model)
    return model


def steps(model: Any, optimizer: torch.optim.Optimizer, count: int = 6) -> None:
    for _ in range(count):
        loss = model(torch.ones(2, 8)).square().sum()
        if loss.requires_grad:
            loss.backward()
        optimizer.step()
        optimizer.zero_grad()


@pytest.mark.parametrize("optimizer", [torch.optim.AdamW, torch.optim.SGD])
@pytest.mark.parametrize("rate", [1e-3, 0.0])
def test_training_gives_no_warning(said: Any, optimizer: Any, rate: float) -> None:
    """Nor a warm-up at rate zero."""
    model = adapted()
    steps(model, optimizer([one for one in model.parameters() if one.requires_grad], lr=rate))
    assert said() == []
    assert not training_watch._watches and training_watch._hook is None, "nothing stays behind"


def test_an_adapter_loaded_without_is_trainable(said: Any, tmp_path: Path) -> None:
    adapted().save_pretrained(tmp_path)
    frozen: Any = PeftModel.from_pretrained(Small(), tmp_path)
    doratune.enable(frozen)
    frozen.train()
    head = frozen.base_model.model.last
    steps(frozen, torch.optim.SGD(head.requires_grad_().parameters(), lr=1e-3))
    assert len(said()) == 1 and "is_trainable=True" in said()[0]


@pytest.mark.usefixtures("one_process")
def test_a_sharded_adapter(said: Any) -> None:
    """Whether it is frozen can be seen; whether it changes cannot."""
    for frozen in (False, True):
        model = adapted()
        if frozen:
            model.requires_grad_(False)
        head = model.base_model.model.last.requires_grad_()
        fully_shard(model)
        steps(model, torch.optim.SGD(head.parameters(), lr=1e-3))
        assert len(said()) == frozen
    assert "is_trainable=True" in said()[0]


def test_an_adapter_that_is_not_at_hand_between_calls(said: Any) -> None:
    """As with DeepSpeed's ZeRO-3, which leaves empty parameters behind."""
    model = adapted()
    head = model.base_model.model.last
    optimizer = torch.optim.SGD(head.requires_grad_().parameters(), lr=1e-3)
    for name, one in model.named_parameters():
        if "lora_" in name:
            one.data = torch.empty(0)
    for _ in range(6):
        optimizer.step()
    assert said() == []


def test_an_optimizer_without_the_adapter(said: Any) -> None:
    model = adapted()
    head = model.base_model.model.last
    steps(model, torch.optim.SGD(head.requires_grad_().parameters(), lr=1e-3))
    assert len(said()) == 1 and "3 optimizer steps changed no parameter" in said()[0]


def test_a_loss_that_does_not_depend_on_the_adapter(said: Any) -> None:
    model = adapted()
    optimizer = torch.optim.AdamW([one for one in model.parameters() if one.requires_grad])
    with model.disable_adapter():
        steps(model, optimizer)
    assert len(said()) == 1


def test_a_teacher_and_an_evaluation_give_no_warning(said: Any, tmp_path: Path) -> None:
    adapted().save_pretrained(tmp_path)
    gc.collect()
    teacher: Any = PeftModel.from_pretrained(Small(), tmp_path)
    doratune.enable(teacher)
    student = adapted()
    steps(student, torch.optim.SGD([one for one in student.parameters() if one.requires_grad], lr=1e-3))
    assert said() == []


def test_an_optimizer_that_writes_past_autograd(said: Any) -> None:
    """Such as one with copies in another precision."""
    model = adapted()
    trained = [one for one in model.parameters() if one.requires_grad]
    copies = [one.detach().clone().requires_grad_() for one in trained]
    optimizer = torch.optim.SGD(copies, lr=1e-2)
    for _ in range(6):
        model(torch.ones(2, 8)).square().sum().backward()
        for one, copy in zip(trained, copies, strict=True):
            copy.grad = one.grad
        optimizer.step()
        for one, copy in zip(trained, copies, strict=True):
            one.data.copy_(copy.data)
            one.grad = None
    assert said() == []


def test_a_second_optimizer_may_go_first(said: Any) -> None:
    model, other = adapted(), Small()
    first = torch.optim.SGD(other.parameters(), lr=1e-3)
    second = torch.optim.SGD([one for one in model.parameters() if one.requires_grad], lr=1e-3)
    for _ in range(3):
        steps(other, first, count=1)
        steps(model, second, count=1)
    assert said() == []


def test_a_magnitude_in_bfloat16_gives_a_warning(said: Any) -> None:
    for dtype, kept in ((torch.bfloat16, False), (torch.bfloat16, True), (torch.float32, False)):
        config = LoraConfig(target_modules=["first"], use_dora=True)
        doratune.enable(get_peft_model(Small().to(dtype), config, autocast_adapter_dtype=kept))
        assert len(said()) == 1
    assert "1 magnitudes are trained in bfloat16" in said()[0]


def test_a_model_that_is_cast_later_gives_a_warning_at_its_first_step(said: Any) -> None:
    model = adapted().to(torch.bfloat16)
    assert said() == []
    optimizer = torch.optim.SGD([one for one in model.parameters() if one.requires_grad], lr=0.1)
    for _ in range(3):
        model(torch.ones(2, 8, dtype=torch.bfloat16)).square().sum().backward()
        optimizer.step()
    assert len(said()) == 1 and "1 magnitudes are trained in bfloat16" in said()[0]


def test_a_frozen_magnitude_in_bfloat16_gives_no_warning(said: Any, tmp_path: Path) -> None:
    adapted().save_pretrained(tmp_path)
    doratune.enable(
        PeftModel.from_pretrained(Small().to(torch.bfloat16), tmp_path, autocast_adapter_dtype=False)
    )
    assert said() == []
