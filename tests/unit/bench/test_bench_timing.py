from __future__ import annotations

from collections import Counter
from itertools import pairwise
from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch
from bench_support import subject_of

from doratune.bench.figures import WARMUP_ROUNDS, divide, judge, summarise, time_ratios
from doratune.bench.op import timing
from doratune.bench.op.layer_data import LayerData
from doratune.bench.op.providers import Provider, Subject
from doratune.bench.op.timing import gpu_rounds, time_rounds
from doratune.engine.output_recovery import OutputRecovery
from doratune.records.bench import ProviderResult, Target


class Clock:
    """A clock that only work moves on."""

    def __init__(self) -> None:
        self.now = 0.0

    def perf_counter(self) -> float:
        return self.now


class Worker:
    """Stands for a subject whose call takes a known time."""

    def __init__(self, name: str, seconds: float, clock: Clock, log: list[str]) -> None:
        self.provider = Provider(name, "none")
        self.seconds, self.clock, self.log = seconds, clock, log

    def prepare(self, data: LayerData) -> None:
        self.clock.now += 100.0

    def call(self, data: LayerData) -> None:
        self.log.append(self.provider.name)
        self.clock.now += self.seconds


def test_rounds_are_interleaved_and_only_calls_are_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    clock, log = Clock(), cast(list[str], [])
    monkeypatch.setattr(timing, "time", clock)
    workers = [Worker(name, seconds, clock, log) for name, seconds in (("a", 1.0), ("b", 2.0), ("c", 4.0))]
    _, data = subject_of("floor")
    times = time_rounds(cast(list[Subject], workers), data, 3)
    assert WARMUP_ROUNDS == 2
    rounds = ["".join(log[start : start + 3]) for start in range(0, len(log), 3)]
    assert len(rounds) == 5
    assert all(sorted(one) == ["a", "b", "c"] for one in rounds)
    expected = {"a": [1e3] * 3, "b": [2e3] * 3, "c": [4e3] * 3}
    assert times == {name: pytest.approx(rounds) for name, rounds in expected.items()}


def test_the_order_changes_each_round_and_is_the_same_in_every_run() -> None:
    _, data = subject_of("floor")
    runs = []
    for _ in range(2):
        log = cast(list[str], [])
        workers = [Worker(name, 1.0, Clock(), log) for name in "abcdefg"]
        time_rounds(cast(list[Subject], workers), data, 15)
        runs.append(log)
    assert runs[0] == runs[1]
    follows = Counter(pairwise(runs[0]))
    for name in "abcdefg":
        before = [count for (_, after), count in follows.items() if after == name]
        assert max(before) <= sum(before) / 2


def test_ratios_are_taken_within_rounds() -> None:
    # The machine is ten times as slow in the second round and twice in the third.
    times = {"floor": [1.0, 10.0, 2.0, 1.0], "ours": [1.2, 12.0, 2.4, 1.6]}
    assert time_ratios(times, "ours", ["floor", "absent"]) == {"floor": pytest.approx(1.2)}
    assert time_ratios(times, "floor", ["floor"]) == {"floor": 1.0}


def test_summary_of_known_times() -> None:
    summary = summarise([5.0, 1.0, 2.0, 4.0, 3.0])
    assert (summary.minimum, summary.lower_quartile, summary.median) == (1.0, 2.0, 3.0)
    assert (summary.upper_quartile, summary.count, summary.rounds[0]) == (4.0, 5, 5.0)
    assert summarise([7.0]).upper_quartile == 7.0


def test_a_figure_that_is_missing_or_zero_gives_no_ratio() -> None:
    figures = {"floor": 0, "peft-lora": 4, "ours": 6}
    assert divide(figures, "ours", ["floor", "peft-lora", "peft-dora"]) == {"peft-lora": 1.5}
    assert divide(figures, "floor", ["peft-lora"]) == {"peft-lora": 0.0}
    assert divide(figures, "absent", ["peft-lora"]) == {}


def test_targets_are_met_missed_or_not_measured() -> None:
    result = ProviderResult(
        provider="ours",
        adapter_dtype=None,
        errors={},
        milliseconds=summarise([1.0]),
        saved_bytes=None,
        peak=None,
        ratios={"time": {"floor": 1.2}},
    )
    limits = [("ours", "time", 1.2), ("ours", "time", 1.19), ("ours", "peak", 1.0), ("absent", "time", 9.0)]
    targets = [
        Target.model_validate({"provider": name, "quantity": quantity, "against": "floor", "at_most": limit})
        for name, quantity, limit in limits
    ]
    verdicts = judge(targets, [result])
    assert [verdict.met for verdict in verdicts] == [True, False, None, None]
    assert [verdict.measured for verdict in verdicts] == [1.2, 1.2, None, None]


def test_a_new_norm_means_a_changed_adapter() -> None:
    for name, changes in (("doratune-dora", False), ("doratune-dora-new-norm", True)):
        subject, data = subject_of(name)
        before = {key: tensor.detach().clone() for key, tensor in subject.adapter.items()}
        versions = [tensor._version for tensor in subject.adapter.values()]
        subject.prepare(data)
        for key, tensor in subject.adapter.items():
            assert torch.equal(tensor, before[key]) is not changes
        assert ([tensor._version for tensor in subject.adapter.values()] != versions) is changes
        subject.prepare(data)  # and back
        for key, tensor in subject.adapter.items():
            torch.testing.assert_close(tensor.detach(), before[key], rtol=0, atol=1e-6)


def test_a_call_gives_gradients_and_preparing_clears_them() -> None:
    subject, data = subject_of("peft-dora")
    subject.call(data)
    tensors = [data.x, *subject.adapter.values()]
    assert all(tensor.grad is not None for tensor in tensors)
    subject.prepare(data)
    assert all(tensor.grad is None for tensor in tensors)


@pytest.mark.usefixtures("large_layers")
def test_an_output_that_nothing_saves_is_recomputed(monkeypatch: pytest.MonkeyPatch) -> None:
    taken: list[bool] = []
    take = OutputRecovery.take

    def noted(output: OutputRecovery, saved: torch.Tensor | None) -> torch.Tensor | None:
        tensor = take(output, saved)
        taken.append(tensor is not None)
        return tensor

    monkeypatch.setattr(OutputRecovery, "take", noted)
    gradients = []
    for name in ("doratune-dora", "doratune-dora-let-go"):
        subject, data = subject_of(name)
        subject.prepare(data)
        subject.call(data)
        gradients.append(subject.adapter["m"].grad)
    assert taken == [True, False]
    torch.testing.assert_close(gradients[0], gradients[1])


def test_a_call_that_waits_for_the_gpu_is_left_out_and_warming_up_does_not_count(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    calls = {"queued": 0, "waits": 0}

    def queued(subject: Any, data: Any) -> float | None:
        name = subject.provider.name
        calls[name] += 1
        compiles = calls[name] <= WARMUP_ROUNDS
        return None if compiles or name == "waits" else float(calls[name])

    monkeypatch.setattr(timing, "_queued", queued)
    subjects: Any = [SimpleNamespace(provider=SimpleNamespace(name=name)) for name in calls]
    data: Any = None
    times = gpu_rounds(subjects, data, rounds=3)
    assert times == {"queued": [float(WARMUP_ROUNDS + number) for number in (1, 2, 3)]}
    assert calls == {"queued": WARMUP_ROUNDS + 3, "waits": WARMUP_ROUNDS + 1}
