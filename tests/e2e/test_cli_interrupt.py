"""Ctrl-C while training: a checkpoint, a way on, and the same result as without it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from cli_support import SMALL, Cli, losses


@pytest.mark.slow
def test_ctrl_c_leaves_a_checkpoint_that_resumes(cli: Cli, tiny_model: Path) -> None:
    flags = ["--model", tiny_model, "--task", "sample-boolq", "--rows", 400, *SMALL, "--dropout", 0]
    command = [sys.executable, "-m", "doratune", "train", *map(str, flags), "--output", "run"]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=os.environ) as process:
        metrics = Path("run/metrics.jsonl")
        deadline = time.monotonic() + 120
        while not (metrics.exists() and metrics.read_text().count("\n") >= 2):
            assert process.poll() is None, process.stderr.read() if process.stderr else ""
            assert time.monotonic() < deadline, "training never began"
            time.sleep(0.02)
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=120)
    assert process.returncode == 130
    assert "interrupted after step" in err and "--resume" in err and "Traceback" not in err
    assert not Path("run/record.json").exists() and list(Path("run/checkpoints").glob("checkpoint-*"))
    stopped = len(losses(Path("run")))
    assert 2 <= stopped < 50

    assert cli("train", *flags, "--output", "run", "--resume").code == 0
    assert cli("train", *flags, "--output", "whole").code == 0
    assert len(losses(Path("run"))) == 50
    assert losses(Path("run")) == pytest.approx(losses(Path("whole")), abs=1e-5)
