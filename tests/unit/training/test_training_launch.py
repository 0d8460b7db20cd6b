"""Launches that ``doratune train`` refuses before torch is imported."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from doratune.errors import InputError
from doratune.training.config import TrainConfig
from doratune.training.early import refuse_early

ALONE = {"ACCELERATE_MIXED_PRECISION": "no", "MASTER_ADDR": "127.0.0.1"}
"""What ``accelerate launch --cpu --num_processes 2`` sets."""


@pytest.mark.parametrize(
    ("environment", "settings", "message"),
    [
        ({"PARALLELISM_CONFIG_TP_SIZE": "2"}, {}, "does not split layers or rows across processes"),
        ({"PARALLELISM_CONFIG_CP_SIZE": "2"}, {}, "does not split layers or rows across processes"),
        ({}, {"device_map": "tp"}, "where: --device-map tp"),
        ({"WORLD_SIZE": "2", "RANK": "0"}, {"device_map": "auto"}, "not both"),
        (ALONE, {}, "started one process"),
    ],
)
def test_a_launch_that_cannot_be_trained_is_refused(
    environment: dict[str, str],
    settings: dict[str, Any],
    message: str,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    config = TrainConfig(output=tmp_path / "run", **settings)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(InputError, match=message):
        refuse_early(config)


def test_a_plan_that_splits_nothing_is_no_obstacle(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in ("TP", "CP", "SP"):
        monkeypatch.setenv(f"PARALLELISM_CONFIG_{name}_SIZE", "1")
    refuse_early(TrainConfig(output=tmp_path / "run"))
