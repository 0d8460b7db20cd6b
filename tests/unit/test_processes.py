"""What a process says when others are missing."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch

from doratune import processes
from doratune.errors import InputError, OtherProcessError
from doratune.processes import join_processes, together


def test_more_processes_than_gpus_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: True)
    monkeypatch.setattr(torch.accelerator, "device_count", lambda: 1)
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    with pytest.raises(InputError, match="2 processes, GPUs: 1"):
        join_processes()


@pytest.mark.parametrize("first", [True, False])
def test_the_first_process_says_that_another_has_ended(
    first: bool, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def gather_object(ends: list[Any]) -> list[Any]:
        raise RuntimeError("[pair.cc:534] Connection closed by peer [127.0.0.1]:1234")

    state = SimpleNamespace(num_processes=2, is_main_process=first, process_index=int(not first))
    monkeypatch.setattr(processes, "PartialState", lambda: state)
    monkeypatch.setattr(processes, "gather_object", gather_object)
    with pytest.raises(OtherProcessError, match="has ended"), together():
        pass
    assert ("perhaps as memory ran out" in caplog.text) == first
    with pytest.raises(ValueError, match="its own"), together():
        raise ValueError("its own error comes before that of others")
