"""The lock of a folder."""

from __future__ import annotations

from pathlib import Path

import pytest
from locked_elsewhere import locked_elsewhere

from doratune.errors import InputError
from doratune.records.lock import locked


def test_one_process_at_a_time(tmp_path: Path) -> None:
    with locked_elsewhere(tmp_path), pytest.raises(InputError, match="another process"), locked(tmp_path):
        pass


def test_a_killed_process_leaves_no_lock(tmp_path: Path) -> None:
    with locked_elsewhere(tmp_path) as process:
        process.kill()
        process.wait()
        with locked(tmp_path):
            pass


def test_a_process_may_take_its_own_lock_again(tmp_path: Path) -> None:
    with locked(tmp_path / "run"), locked(tmp_path / "run"):
        pass
