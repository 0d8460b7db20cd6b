"""The estimate counts what a study will do."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from study_support import MadeUpRunner, Silent, opened

from doratune.cli.estimate import show_estimate
from doratune.records.archive import write_archive
from doratune.study.study import run_study


def test_archived_runs_are_not_counted_and_not_restored(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    study = opened(tmp_path)
    run_study(study, MadeUpRunner(), Silent(), reproduce="doratune study")
    write_archive(study.folder, study.folder)
    runs = sorted(study.folder.glob("runs/*"))
    for run in runs[1:]:
        shutil.rmtree(run)
    before = sorted(study.folder.rglob("*"))
    show_estimate(study, jobs=1, as_json=True)
    total = json.loads(capsys.readouterr().out)["total"]
    assert len(runs) > 2 and total["runs"] == total["rows"] == 0
    assert sorted(study.folder.rglob("*")) == before
