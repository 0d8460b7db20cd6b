"""Rounds of a GPU's own time, without a GPU: which calls count."""

from types import SimpleNamespace
from typing import Any

import pytest

from doratune.bench.op import gpu_time
from doratune.bench.timing import WARMUP_ROUNDS


def test_a_call_that_waits_for_the_gpu_is_left_out_and_warming_up_does_not_count(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    calls = {"queued": 0, "waits": 0}

    def queued(subject: Any, data: Any) -> float | None:
        name = subject.provider.name
        calls[name] += 1
        compiles = calls[name] <= WARMUP_ROUNDS
        return None if compiles or name == "waits" else float(calls[name])

    monkeypatch.setattr(gpu_time, "_queued", queued)
    subjects: Any = [SimpleNamespace(provider=SimpleNamespace(name=name)) for name in calls]
    data: Any = None
    times = gpu_time.gpu_rounds(subjects, data, rounds=3)
    assert times == {"queued": [float(WARMUP_ROUNDS + number) for number in (1, 2, 3)]}
    assert calls == {"queued": WARMUP_ROUNDS + 3, "waits": WARMUP_ROUNDS + 1}
