from __future__ import annotations

from pathlib import Path

from doratune.records.layout import checkpoints


def test_checkpoints_are_sorted_by_step_not_by_name(tmp_path: Path) -> None:
    for name in ("checkpoint-10", "checkpoint-9", "checkpoint-100", "checkpoint-9.part", "other-3"):
        (tmp_path / "checkpoints" / name).mkdir(parents=True)
    assert [(step, path.name) for step, path in checkpoints(tmp_path).items()] == [
        (9, "checkpoint-9"),
        (10, "checkpoint-10"),
        (100, "checkpoint-100"),
    ]
    assert checkpoints(tmp_path / "none") == {}
