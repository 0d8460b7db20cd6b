from __future__ import annotations

import multiprocessing
import os
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from doratune.bench.step.turns import Alone, Turn, TurnsOverError, rotated, workers
from doratune.errors import DoratuneError, InputError


@dataclass(frozen=True)
class Sleeper:
    """Writes a line when a pass begins and when it ends, and sleeps between."""

    name: str
    log: Path
    seconds: float = 0.0

    def __call__(self, turn: Turn) -> dict[str, Any]:
        passes, waiting = 0, 0.0
        try:
            while True:
                used = time.process_time()
                turn.wait(passes)
                waiting += time.process_time() - used
                self.write("begins")
                time.sleep(self.seconds)
                self.write("ends")
                passes += 1
        except TurnsOverError:
            return {"passes": passes, "waiting": waiting, "pid": os.getpid()}

    def write(self, what: str) -> None:
        with self.log.open("a") as file:
            file.write(f"{self.name} {what}\n")


@dataclass(frozen=True)
class Failing:
    """Fails in its second turn, in one of several ways."""

    how: str

    def __call__(self, turn: Turn) -> None:
        turn.wait()
        turn.wait()
        match self.how:
            case "raises":
                raise ValueError("first line\nthe last line")
            case "input":
                raise InputError("no such thing", where="--thing", fix="name another")
            case "exits":
                os._exit(3)


@dataclass(frozen=True)
class Talker:
    """Prints, and hands back what it finds in its environment."""

    def __call__(self, turn: Turn) -> None:
        turn.wait()
        print("talk")
        os.write(2, b"talk")
        with suppress(TurnsOverError):
            turn.wait((os.environ.get("OMP_WAIT_POLICY"), os.environ.get("GOMP_SPINCOUNT")))


def test_one_process_computes_at_a_time_and_each_round_begins_with_another(tmp_path: Path) -> None:
    log = tmp_path / "log"
    works = {name: Sleeper(name, log, seconds) for name, seconds in (("a", 0.0), ("b", 0.3), ("c", 0.0))}
    with workers(works) as running:
        assert not log.exists()  # all wait before the first turn
        rounds = [running.round(number) for number in range(4)]
        reports = running.finish()
    order = [line.split()[0] for line in log.read_text().splitlines()]
    assert order[::2] == order[1::2] == list("abcbcacababc")
    assert [step.outcome for steps in rounds for step in steps.values()] == [1] * 3 + [2] * 3 + [3] * 3 + [
        4
    ] * 3
    for steps in rounds:
        assert steps["b"].milliseconds >= 300
        assert steps["a"].milliseconds < 300 and steps["c"].milliseconds < 300
    assert len({report["pid"] for report in reports.values()}) == 3
    for report in reports.values():
        assert report["passes"] == 4
        assert report["waiting"] < 0.05  # seconds of CPU while the others had their turns
    assert multiprocessing.active_children() == []


@pytest.mark.parametrize(
    ("how", "expected"),
    [("raises", "the last line"), ("exits", "exit code 3")],
)
def test_a_process_that_dies_is_named_with_its_last_words(how: str, expected: str, tmp_path: Path) -> None:
    works = {"fine": Sleeper("fine", tmp_path / "log"), "ill": Failing(how)}
    with pytest.raises(DoratuneError, match="died") as caught, workers(works) as running:
        running.round(0)
        running.round(1)
    assert caught.value.where == "ill" and caught.value.got == expected
    assert multiprocessing.active_children() == []


def test_a_process_that_dies_while_it_waits_is_named() -> None:
    with (
        pytest.raises(DoratuneError, match=r"a benchmark process died\n  where: waiting"),
        workers({"waiting": Failing("none")}) as running,
    ):
        for child in multiprocessing.active_children():
            child.kill()
            child.join()
        running.round(0)


def test_bad_input_that_a_process_finds_stays_bad_input() -> None:
    with pytest.raises(InputError) as caught, workers({"ill": Failing("input")}) as running:
        running.round(0)
        running.round(1)
    assert caught.value.exit_code == 2
    assert caught.value.message == "no such thing\n  where: --thing\n  to do: name another"


def test_a_process_is_quiet_and_keeps_openmp_s_default_waiting(
    capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OMP_WAIT_POLICY", "ACTIVE")
    monkeypatch.setenv("GOMP_SPINCOUNT", "infinite")
    with workers({"talker": Talker()}) as running:
        steps = running.round(0)
        running.finish()
    assert steps["talker"].outcome == (None, None)
    printed = capfd.readouterr()
    assert "talk" not in printed.out + printed.err


def test_rotation() -> None:
    assert [rotated("abc", number) for number in range(4)] == [
        list("abc"),
        list("bca"),
        list("cab"),
        list("abc"),
    ]


def test_a_single_loop_never_waits(tmp_path: Path) -> None:
    turns = Alone(3)
    assert Sleeper("one", tmp_path / "log", seconds=0.02)(turns)["passes"] == 3
    assert [step.outcome for step in turns.steps] == [1, 2, 3]
    assert all(20 <= step.milliseconds < 500 for step in turns.steps)
