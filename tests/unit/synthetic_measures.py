"""Adds measures, costs and what is kept to a made-up study, for the tests of their tables and plots."""

from __future__ import annotations

import numpy as np

from doratune.records.run import RowMeasures
from doratune.records.study import (
    Forgetting,
    KeptArm,
    KeptMeasure,
    KeptPair,
    MeasuredPair,
    MeasureMean,
    RowMeasure,
    StudyArm,
    StudyCell,
    StudyRecord,
)
from doratune.stats.measures import measure_difference, measure_mean

MEASURES: tuple[RowMeasure, ...] = ("nll", "nll_per_byte", "brier")
ROWS = 300
BASE: dict[KeptMeasure, float] = {"accuracy": 0.61, "nll": 0.9, "nll_per_token": 3.05}


def measured(record: StudyRecord) -> StudyRecord:
    """The study with measures of every run, a speed of inference and a file size."""
    return record.model_copy(update={"cells": [_measured_cell(cell) for cell in record.cells]})


def with_forgetting(record: StudyRecord, measures: tuple[KeptMeasure, ...] = (*BASE,)) -> StudyRecord:
    """The study with what its arms keep of another task and of a text, for the training of each cell."""
    entries = [_kept(cell, measure) for cell in record.cells for measure in measures]
    return record.model_copy(update={"forgetting": entries})


def _measured_cell(cell: StudyCell) -> StudyCell:
    arms = [_measured_arm(place, arm) for place, arm in enumerate(cell.arms)]
    values = {arm.name: _values(place, len(arm.runs)) for place, arm in enumerate(cell.arms)}
    pairs = [
        MeasuredPair(
            from_arm=one.from_arm,
            to_arm=one.to_arm,
            measure=measure,
            difference=measure_difference(values[one.from_arm], values[one.to_arm]),
        )
        for one in cell.differences
        for measure in MEASURES
    ]
    base = cell.base.model_copy(update={"measures": _row_measures(0.7)}) if cell.base else None
    return cell.model_copy(update={"arms": arms, "measures": pairs, "base": base})


def _measured_arm(place: int, arm: StudyArm) -> StudyArm:
    found = measure_mean(_values(place, len(arm.runs)))
    runs = []
    for run in arm.runs:
        assert run.training is not None
        size = 4 * run.parameters.trainable
        runs.append(
            run.model_copy(
                update={
                    "result": run.result.model_copy(update={"measures": _row_measures(found.mean)}),
                    "training": run.training.model_copy(
                        update={"cpu_seconds": 2 * run.training.seconds, "weights_bytes": size}
                    ),
                    "inference_tokens_per_second": 900.0 - 20 * place,
                }
            )
        )
    means: dict[RowMeasure, MeasureMean] = {measure: found for measure in MEASURES}
    return arm.model_copy(update={"measures": means, "runs": runs})


def _row_measures(nll: float) -> RowMeasures:
    return RowMeasures(
        nll=nll, nll_per_byte=0.9 * nll, brier=0.8 * nll, calibration_error=0.041, confidence=0.72
    )


def _values(place: int, seeds: int, level: float = 0.55) -> np.ndarray:
    """(seeds, rows) of a measure; the same every time, and less for later arms."""
    random = np.random.default_rng(place)
    rows = np.random.default_rng(99).gamma(2.0, level / 2, size=(1, ROWS))
    return rows * (1 - 0.01 * place) + 0.05 * random.uniform(size=(seeds, ROWS))


def _kept(cell: StudyCell, measure: KeptMeasure) -> Forgetting:
    base = np.full((1, ROWS), BASE[measure])
    values = {
        arm.name: np.clip(
            base + 0.01 * (place - 4) * (-1 if measure == "accuracy" else 1)
            + 0.05 * np.random.default_rng(place).normal(size=(len(arm.runs), ROWS)),
            0,
            1 if measure == "accuracy" else None,
        )
        for place, arm in enumerate(cell.arms)
    }  # fmt: skip
    return Forgetting(
        model=cell.model,
        trained_on=cell.train.task or "a mix" if cell.train else "different rows",
        format=cell.format,
        rank=cell.rank,
        about="plain-english" if measure == "nll_per_token" else "piqa",
        measure=measure,
        rows=ROWS,
        bytes_per_token=4.1 if measure == "nll_per_token" else None,
        base=BASE[measure],
        arms=[
            KeptArm(
                name=arm.name,
                seeds=[run.seed for run in arm.runs],
                value=measure_mean(values[arm.name]),
                change=measure_difference(np.broadcast_to(base, values[arm.name].shape), values[arm.name]),
            )
            for arm in cell.arms
        ],
        differences=[
            KeptPair(
                from_arm=one.from_arm,
                to_arm=one.to_arm,
                difference=measure_difference(values[one.from_arm], values[one.to_arm]),
            )
            for one in cell.differences
        ],
    )
