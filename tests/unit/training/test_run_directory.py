"""Which folders training writes to."""

from __future__ import annotations

from pathlib import Path

import pytest

from doratune.errors import InputError
from doratune.training.run_directory import refuse_taken


def test_the_empty_folder_of_a_process_killed_at_its_start_is_no_run(tmp_path: Path) -> None:
    folder = tmp_path / "checkpoints"
    folder.mkdir()
    refuse_taken(tmp_path)
    (folder / "checkpoint-2").mkdir()
    with pytest.raises(InputError, match=r"already holds a run(.|\n)*checkpoints"):
        refuse_taken(tmp_path)
