"""A made-up study and a made-up analysis, for the tests of their reports. The answers are simulated."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
from scipy.stats import linregress

from doratune.records.analysis import (
    AnalysisRecord,
    GainDrift,
    KindCorrelation,
    RunAnalysis,
    WeightChange,
)
from doratune.records.run import DataRecord, Environment, ParameterCount, TrainingRecord
from doratune.records.study import (
    ArmResult,
    PooledDifference,
    SeedRun,
    StudyArm,
    StudyCell,
    StudyMethod,
    StudyRecord,
    Trial,
)
from doratune.stats.accuracy import accuracy_with_interval
from doratune.stats.seeds import PairedCell, adjusted, arm_summary, difference, pooled
from doratune.stats.telling import with_telling

METHODS: tuple[StudyMethod, ...] = ("lora", "dora", "dora-attached-norm", "full")
RATES = (5e-5, 1e-4, 2e-4, 4e-4, 8e-4)
SECONDS = {"lora": 100.0, "dora": 112.0, "dora-attached-norm": 151.0, "full": 240.0}
MEMORY = {"lora": 2.0e9, "dora": 2.1e9, "dora-attached-norm": 2.4e9, "full": 6.0e9}
TRAINABLE = {"lora": 2_441_216, "dora": 2_532_416, "dora-attached-norm": 2_532_416, "full": 134_515_008}
KINDS = ("q_proj", "k_proj", "v_proj", "up_proj", "down_proj")
CELLS = (  # task, rows, mean of the latent ability, what DoRA adds to it
    ("boolq", 1200, 0.7, 0.0),
    ("arc-easy", 2000, 0.3, 0.25),
    ("sample-winogrande", 400, 0.9, -0.05),
)
ENVIRONMENT = Environment(
    doratune="0.1.0",
    python="3.11.7",
    platform="Linux x86_64",
    cpu="Made-up Processor 9000",
    cores=2,
    gpu=None,
    packages={"torch": "2.13.0", "peft": "0.21.2"},
    git_commit=None,
)


def study(
    *,
    methods: tuple[StudyMethod, ...] = METHODS,
    seeds: int = 3,
    tasks: tuple[str, ...] = ("boolq", "arc-easy", "sample-winogrande"),
    pending: tuple[str, ...] = (),
    ranks: tuple[int, ...] = (32,),
    tries: int = 1,
) -> StudyRecord:
    """A study whose cells have different verdicts; the same every time.

    Args:
        methods: What is trained.
        seeds: How many seeds answer the test rows.
        tasks: Names of ``CELLS``.
        pending: What is still to be run.
        ranks: The ranks; with several, every cell is there with each, at higher ranks more able.
        tries: How many seeds try every learning rate.
    """
    if len(ranks) > 1:
        return _crossed(ranks, methods=methods, seeds=seeds, tasks=tasks, pending=pending, tries=tries)
    drawn = {name: _answers(name, methods, seeds) for name in tasks}
    cells = [
        _cell(name, answers, next(iter(answers.values())).shape[1], tries) for name, answers in drawn.items()
    ]
    others = [method for method in ("dora", *methods) if method in methods and method != "lora"]
    for method in dict.fromkeys(others):
        family = adjusted(
            [
                difference("lora", answers["lora"], method, answers[method], range(seeds))
                for answers in drawn.values()
            ]
        )
        cells = [
            cell.model_copy(update={"differences": [*cell.differences, one]})
            for cell, one in zip(cells, family, strict=True)
        ]
    pools = [
        PooledDifference(
            model="tiny/smol-135m",
            rank=32,
            cells=[f"{name} (continuation)" for name in tasks],
            difference=pooled(
                "lora",
                method,
                [PairedCell(name, answers["lora"], answers[method]) for name, answers in drawn.items()],
            ),
        )
        for method in dict.fromkeys(others)
    ]
    return StudyRecord(
        title="LoRA and DoRA on three made-up tasks",
        question="Does DoRA answer more rows right than LoRA where each has its own best learning rate?",
        inputs={},
        plan={
            "models": ["tiny/smol-135m"],
            "tasks": list(tasks),
            "learning_rates": list(RATES),
            "seeds": seeds,
        },
        cells=cells,
        pooled=pools if len(tasks) > 1 else [],
        pending=list(pending),
        settings={
            "batch_size": 16,
            "dropout": 0.05,
            "targets": ["q_proj", "v_proj"],
            "bf16": True,
            "limit": None,
        },
        notes=["The rows are made up."],
        environment=ENVIRONMENT,
        environments=1,
        reproduce="doratune study plan.yaml --output runs/study",
    )


def _crossed(ranks: tuple[int, ...], **options: Any) -> StudyRecord:
    one = study(**options)
    cells = [
        _at_rank(cell, rank, 0.02 * (place - len(ranks) + 1))
        for place, rank in enumerate(ranks)
        for cell in one.cells
    ]
    pools = [pool.model_copy(update={"rank": rank}) for rank in ranks for pool in one.pooled]
    return one.model_copy(update={"cells": cells, "pooled": pools})


def _at_rank(cell: StudyCell, rank: int, more: float) -> StudyCell:
    """The cell with its accuracies moved, in runs of that rank."""
    arms = [
        arm.model_copy(
            update={
                "mean": arm.mean + more,
                "interval": (arm.interval[0] + more, arm.interval[1] + more),
                "runs": [
                    run.model_copy(
                        update={
                            "run": f"{run.run}-r{rank}",
                            "result": run.result.model_copy(update={"accuracy": run.result.accuracy + more}),
                        }
                    )
                    for run in arm.runs
                ],
            }
        )
        for arm in cell.arms
    ]
    return cell.model_copy(update={"rank": rank, "arms": arms})


def comparison(
    answers: Mapping[str, Mapping[str, list[bool]]] | None = None,
    methods: Mapping[str, StudyMethod] | None = None,
) -> StudyRecord:
    """What ``compare`` makes: one seed, no search, each run tested on every task.

    Args:
        answers: By task and arm, which rows were right; "base" is the model before training.
        methods: By arm, its method; those that are missing are called like their method.
    """
    by_task = answers if answers is not None else COMPARED
    arms = list(dict.fromkeys(arm for flags in by_task.values() for arm in flags if arm != "base"))
    cells = [
        _compared_cell(task, flags, {**{arm: arm for arm in arms}, **(methods or {})})
        for task, flags in by_task.items()
    ]
    for place, cell in enumerate(cells):
        answers = {arm: _table(one) for arm, one in by_task[cell.task].items() if arm != "base"}
        if {"lora", "dora"} <= answers.keys():
            found = difference("lora", answers["lora"], "dora", answers["dora"], [0])
            cell = cell.model_copy(update={"differences": [found]})
        cells[place] = with_telling(cell, answers)
    paired = [cell for cell in cells if cell.differences]
    family = adjusted([cell.differences[0] for cell in paired])
    corrected = {cell.task: [one] for cell, one in zip(paired, family, strict=True)}
    return StudyRecord(
        title="LoRA and DoRA on samples",
        question=None,
        inputs={},
        plan={"models": ["tiny"], "seeds": [0]},
        cells=[cell.model_copy(update={"differences": corrected.get(cell.task, [])}) for cell in cells],
        pooled=[],
        pending=[],
        settings={"model": "tiny", "learning_rate": 0.0002, "targets": ["q_proj", "v_proj"], "bf16": False},
        notes=[],
        environment=ENVIRONMENT,
        environments=1,
        reproduce="doratune compare --preset demo",
    )


def flags(correct: int, rows: int, first: int = 0) -> list[bool]:
    """``rows`` flags of which ``correct`` in a row are True, from ``first`` on and around."""
    return [(row - first) % rows < correct for row in range(rows)]


COMPARED = {  # undecided on one, better on the other
    "sample-boolq": {"base": flags(205, 400), "lora": flags(322, 400), "dora": flags(328, 400, 20)},
    "sample-winogrande": {"base": flags(198, 400), "lora": flags(241, 400), "dora": flags(293, 400, 5)},
}


def _table(flags: list[bool]) -> np.ndarray:
    return np.array([flags], dtype=bool)


def _compared_cell(
    task: str, answers: Mapping[str, list[bool]], methods: Mapping[str, StudyMethod]
) -> StudyCell:
    rows = len(next(iter(answers.values())))
    base = answers.get("base")
    whole = _cell(task, {}, rows)
    arms = []
    for arm in answers:
        if arm != "base":
            made = _arm(task, methods[arm], _table(answers[arm]))
            runs = [run.model_copy(update={"run": arm}) for run in made.runs]
            arms.append(
                made.model_copy(update={"name": arm, "trials": [], "learning_rate": 0.0002, "runs": runs})
            )
    return whole.model_copy(
        update={
            "model": "tiny",
            "rank": 16,
            "majority": 0.525,
            "train": whole.train.model_copy(
                update={"task": None, "parts": {"sample-boolq": 1000, "sample-winogrande": 1000}}
            )
            if whole.train
            else None,
            "validation": None,
            "note": None,
            "base": _result(sum(base), rows) if base else None,
            "arms": arms,
        }
    )


def analysis() -> AnalysisRecord:
    """LoRA whose changes go together, DoRA and full fine-tuning whose do not, over four checkpoints."""
    return AnalysisRecord(
        model="tiny/smol-135m",
        runs=[_moved("lora"), _moved("dora"), _moved("full")],
        reproduce="doratune analyze runs/study/lora-seed0 runs/study/dora-seed0",
    )


def _answers(task: str, methods: tuple[StudyMethod, ...], seeds: int) -> dict[StudyMethod, np.ndarray]:
    _, rows, ability, gain = next(entry for entry in CELLS if entry[0] == task)
    random = np.random.default_rng(len(task))
    row = random.normal(size=(1, rows))
    gains = {"lora": 0.0, "dora": gain, "dora-attached-norm": gain * 0.9, "full": gain * 1.2}
    return {
        method: ability
        + gains.get(method, gain * (len(method) % 5) / 4)
        + row
        + 0.03 * random.normal(size=(seeds, 1))
        + 0.5 * random.normal(size=(seeds, rows))
        > 0
        for method in methods
    }


def _cell(task: str, answers: dict[StudyMethod, np.ndarray], rows: int, tries: int = 1) -> StudyCell:
    data = {
        name: DataRecord(task=task, source="made-up", split=split, sha256=letter * 64, rows=count)
        for name, split, letter, count in (
            ("train", "train", "a", 2000),
            ("validation", "train", "b", 500),
            ("test", "test", "c", rows),
        )
    }
    return StudyCell(
        model="tiny/smol-135m",
        task=task,
        sample=task.startswith("sample-"),
        format="continuation",
        protocol="likelihood",
        metric="accuracy",
        rank=32,
        rows=rows,
        chance=0.5,
        majority=0.62,
        note="Tested on the public validation rows." if task == "boolq" else None,
        base=_result(int(0.51 * rows), rows),
        arms=[_arm(task, method, correct, tries) for method, correct in answers.items()],
        differences=[],
        **data,
    )


def _result(correct: int, rows: int) -> ArmResult:
    found = accuracy_with_interval(correct, rows)
    return ArmResult(accuracy=found.value, interval=(found.low, found.high), correct=correct, unmatched=0)


def _arm(task: str, method: StudyMethod, correct: np.ndarray, tries: int = 1) -> StudyArm:
    mean, interval = arm_summary(correct)
    best = 2 if method != "dora" else 1
    trials = [
        Trial(
            learning_rate=rate,
            seed=seed if tries > 1 else None,
            accuracy=0.7
            - 0.02 * (place - best) ** 2
            - 0.004 * len(method)
            + 0.006 * (seed - (tries - 1) / 2),
            rows=500,
            run=f"search/{task}-{method}-{rate:g}" + (f"-seed{seed}" if tries > 1 else ""),
            chosen=place == best,
        )
        for place, rate in enumerate(RATES)
        for seed in range(tries)
    ]
    return StudyArm(
        name=method,
        engine=None if method == "full" else "doratune",
        method=method,
        trials=trials,
        learning_rate=RATES[best],
        runs=[_run(task, method, seed, one) for seed, one in enumerate(correct)],
        mean=mean,
        interval=interval,
    )


def _run(task: str, method: StudyMethod, seed: int, correct: np.ndarray) -> SeedRun:
    seconds = SECONDS.get(method, 90.0 + 6 * len(method)) + seed
    return SeedRun(
        seed=seed,
        run=f"runs/{task}-{method}-seed{seed}",
        result=_result(int(correct.sum()), correct.size),
        parameters=ParameterCount(
            trainable=(trainable := TRAINABLE.get(method, 150_000 * len(method))),
            total=137_000_000,
            share=trainable / 137e6,
        ),
        training=TrainingRecord(
            seconds=seconds,
            steps=300,
            epochs=1.0,
            tokens=138_666,
            tokens_per_second=138_666 / seconds,
            peak_memory_bytes=int(MEMORY.get(method, 1.8e9 + 0.05e9 * len(method))),
            final_loss=0.412,
        ),
        curve=[
            (
                step,
                0.4
                + 0.02 * len(method)
                + 2.2 * math.exp(-step / 40)
                + 0.1 * math.sin(step + seed + len(method)),
            )
            for step in range(1, 301)
        ],
    )


def _moved(method: StudyMethod) -> RunAnalysis:
    random = np.random.default_rng(len(method))
    slope = {"lora": 0.8, "dora": -0.25, "full": -0.7}[method]
    changes, gains = [], []
    for step in (75, 150, 225, 300):
        for layer in range(6):
            for place, kind in enumerate(KINDS):
                direction = float(step / 3e5 * (1 + 0.2 * place) * random.uniform(0.6, 1.4))
                magnitude = 0.004 + slope * (direction - 0.001) + 0.0003 * random.normal()
                name = f"model.layers.{layer}.self_attn.{kind}"
                changes.append(
                    WeightChange(
                        step=step, layer=name, kind=kind, magnitude=abs(float(magnitude)), direction=direction
                    )
                )
                if method == "dora":
                    drift = step / 3e4 * (1 + place) / 3
                    gains.append(
                        GainDrift(step=step, layer=name, kind=kind, mean=1 + drift / 2, deviation=drift)
                    )
    return RunAnalysis(
        name=f"{method}-seed0",
        method=method,
        run=f"runs/study/{method}-seed0",
        steps=[75, 150, 225, 300],
        changes=changes,
        gains=gains,
        correlations=[_correlation(kind, changes) for kind in ("all", *KINDS)],
    )


def _correlation(kind: str, changes: list[WeightChange]) -> KindCorrelation:
    chosen = [one for one in changes if kind in ("all", one.kind)]
    line = linregress([one.direction for one in chosen], [one.magnitude for one in chosen])
    return KindCorrelation(
        kind=kind, correlation=float(line.rvalue), slope=float(line.slope), points=len(chosen)
    )
