"""SIGTERM, Ctrl-C twice, and two processes in one folder."""

from __future__ import annotations

import signal
import subprocess
import time
from pathlib import Path

import pytest
from faults_support import RUN, command, doratune

from doratune.records.layout import checkpoints

ADAPTER = "adapter/adapter_model.safetensors"


def started(run: Path, *flags: object) -> subprocess.Popen[str]:
    """A training that has done a step."""
    process = subprocess.Popen(command("train", *flags, "--output", run), stderr=subprocess.PIPE, text=True)
    while not ((run / "metrics.jsonl").exists() and (run / "metrics.jsonl").stat().st_size):
        assert process.poll() is None
        time.sleep(0.005)
    return process


def test_sigterm_leaves_a_checkpoint(tiny_model: Path, whole_run: Path, tmp_path: Path) -> None:
    run, flags = tmp_path / "run", ["--model", tiny_model, *RUN]
    with started(run, *flags) as process:
        process.send_signal(signal.SIGTERM)
        process.send_signal(signal.SIGTERM)  # a scheduler may send it to the group and to the process
        _, err = process.communicate(timeout=300)
    assert process.returncode == 143 and "interrupted after step" in err and "Traceback" not in err
    assert checkpoints(run) and not (run / "record.json").exists()
    doratune("train", *flags, "--output", run, "--resume")
    assert (run / ADAPTER).read_bytes() == (whole_run / ADAPTER).read_bytes()


def test_ctrl_c_twice_ends_at_once(tiny_model: Path, whole_run: Path, tmp_path: Path) -> None:
    run, flags = tmp_path / "run", ["--model", tiny_model, *RUN]
    with started(run, *flags) as process:
        process.send_signal(signal.SIGINT)
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=300)
    assert process.returncode == 130 and "Traceback" not in err
    doratune("train", *flags, "--output", run, "--resume")
    assert (run / ADAPTER).read_bytes() == (whole_run / ADAPTER).read_bytes()


@pytest.mark.parametrize("option", ["--resume", "--overwrite"])
def test_the_second_process_in_a_folder_is_refused(
    tiny_model: Path, whole_run: Path, tmp_path: Path, option: str
) -> None:
    run, flags = tmp_path / "run", ["--model", tiny_model, *RUN]
    with started(run, *flags) as process:
        process.send_signal(signal.SIGSTOP)  # so that it is at work as long as the second one looks
        err = doratune("train", *flags, "--output", run, option, code=2)
        process.send_signal(signal.SIGCONT)
        process.communicate(timeout=300)
    assert process.returncode == 0 and "another process is writing to this folder" in err
    assert (run / ADAPTER).read_bytes() == (whole_run / ADAPTER).read_bytes()
