"""Studies without training: plans of built-in samples, and a runner that writes made-up runs."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import synthetic_runs
import yaml

from doratune.records.files import write_json_atomic, write_jsonl_atomic, write_text_atomic
from doratune.records.layout import METRICS_NAME, RECORD_NAME
from doratune.records.run import Divergence
from doratune.records.storage import read_record, write_config, write_divergence
from doratune.study.execute import Outcome
from doratune.study.job import Job, Wanted
from doratune.study.plan_file import load_plan
from doratune.study.study import Study, open_study

PLAN: dict[str, Any] = {
    "title": "Made up",
    "question": "Does the study do what its plan says?",
    "models": ["smollm2-135m"],
    "methods": ["lora", "dora"],
    "tasks": [{"train": "sample-boolq", "rows": 32, "validation_rows": 20, "eval_rows": 40}],
    "ranks": [4],
    "learning_rates": [1e-4, 1e-3],
    "seeds": [0, 1],
    "choose": {"extend": 0},
    "settings": {"epochs": 1.0, "warmup_steps": 1},
}


def write_plan(folder: Path, **changes: Any) -> Path:
    """A plan file with some keys changed."""
    path = folder / "plan.yaml"
    path.write_text(yaml.safe_dump({**PLAN, **changes}), encoding="utf-8")
    return path


def opened(folder: Path, **changes: Any) -> Study:
    """The study of such a plan in ``folder``/study."""
    return open_study(load_plan(str(write_plan(folder, **changes))), folder / "study")


def share(job: Job, split: str) -> float:
    """Made-up accuracies: the higher rate is the better one on validation rows, and for DoRA."""
    if job.config is None:
        return 0.5
    better = job.config.learning_rate == 1e-3
    if split == "validation":
        return 0.8 if better else 0.7
    return 0.6 + 0.1 * (job.config.method == "dora") + 0.05 * job.config.seed


class MadeUpRunner:
    """Writes what a run would leave behind, at once.

    Args:
        accuracy: Share of the rows that are right, by job and split.
        fails: Jobs that fail.
        diverges: Jobs whose training diverges.
    """

    def __init__(
        self,
        accuracy: Callable[[Job, str], float] = share,
        fails: Callable[[Job], bool] = lambda job: False,
        diverges: Callable[[Job], bool] = lambda job: False,
    ) -> None:
        self.capacity = 1
        self.jobs: list[Job] = []
        self._accuracy = accuracy
        self._fails = fails
        self._diverges = diverges

    def __enter__(self) -> MadeUpRunner:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def stop(self, number: int) -> None:
        pass

    @property
    def done(self) -> list[str]:
        """The requests, in order."""
        return [f"{job.stage} {job.label}" for job in self.jobs]

    def submit(self, job: Job) -> Future[Outcome]:
        self.jobs.append(job)
        future: Future[Outcome] = Future()
        if self._fails(job):
            future.set_result(Outcome(1.0, "made to fail"))
            return future
        if self._diverges(job):
            assert job.config is not None
            config = job.config.model_dump(mode="json")
            write_config(job.folder, config)
            write_jsonl_atomic(job.folder / METRICS_NAME, [{"step": 1, "loss": None}])
            write_divergence(job.folder, Divergence(message="loss not finite", seconds=3.0, config=config))
            future.set_result(Outcome(3.0, diverged=True))
            return future
        if not (job.folder / RECORD_NAME).is_file():
            _train(job)
        for wanted in job.left():
            self._evaluate(job, wanted)
        if job.text_left():
            record = read_record(job.folder).to_dict()
            worse = 0.0 if job.config is None else 1.0 - 0.5 * (job.config.method == "dora")
            text = synthetic_runs.text([50.0 + worse, 30.0 + worse])
            write_json_atomic(job.folder / RECORD_NAME, {**record, "text": text})
        future.set_result(Outcome(1.0))
        return future

    def _evaluate(self, job: Job, wanted: Wanted) -> None:
        split = wanted.config.split
        flags = synthetic_runs.flags(round(self._accuracy(job, split) * wanted.rows), wanted.rows)
        folder = wanted.config.output
        assert folder is not None
        data = {"task": wanted.config.task[0], "source": "made up", "split": split, "rows": wanted.rows}
        entry = synthetic_runs.evaluation(
            wanted.config.task[0],
            flags,
            data={**data, "sha256": wanted.asked},
            limit=wanted.config.eval_rows,
            format=wanted.config.format,
        )
        write_jsonl_atomic(
            folder / entry["predictions"],
            [{"row": row, "correct": right} for row, right in enumerate(flags)],
        )
        held = folder if (folder / RECORD_NAME).is_file() else job.folder
        record = read_record(held).to_dict()
        before = record["evaluations"] if held == folder else []
        write_json_atomic(folder / RECORD_NAME, {**record, "evaluations": [*before, entry]})


def _train(job: Job) -> None:
    method = job.config.method if job.config else "base"
    changes = {"seed": job.config.seed, "config": job.config.model_dump(mode="json")} if job.config else {}
    write_json_atomic(job.folder / RECORD_NAME, synthetic_runs.record(method, [], **changes))
    write_jsonl_atomic(job.folder / METRICS_NAME, [{"step": 1, "loss": 2.0}])
    if job.config is not None:
        write_config(job.folder, job.config.model_dump(mode="json"))
        write_text_atomic(job.folder / "adapter/adapter_config.json", "{}")


class Silent:
    """Watches a study and says nothing."""

    def started(self, job: Job) -> None:
        pass

    def ended(self, job: Job, outcome: Outcome) -> None:
        pass

    def tick(self) -> None:
        pass

    def stopping(self) -> None:
        pass
