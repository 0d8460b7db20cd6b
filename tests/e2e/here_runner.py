"""Carrying out a study's jobs in the test's process."""

from __future__ import annotations

from concurrent.futures import Future

import pytest

from doratune.study.execute import Outcome, carry_out
from doratune.study.job import Job


class HereRunner:
    """Carries out jobs in this process, which saves their start."""

    def __init__(self) -> None:
        self.capacity = 1
        self.done: list[str] = []

    def __enter__(self) -> HereRunner:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def stop(self, number: int) -> None:
        pass

    def submit(self, job: Job) -> Future[Outcome]:
        self.done.append(f"{job.stage} {job.label}")
        future: Future[Outcome] = Future()
        future.set_result(carry_out(job))
        return future


def carry_out_here(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let ``doratune compare`` and ``doratune study`` carry out their jobs in this process."""
    monkeypatch.setattr("doratune.study.local.LocalRunner", lambda *_, **__: HereRunner())
    monkeypatch.setattr("doratune.study.study.LocalRunner", lambda *_, **__: HereRunner())
