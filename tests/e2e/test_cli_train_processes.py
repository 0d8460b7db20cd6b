"""``doratune train`` under its launchers, as they are typed."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from cli_support import SMALL, losses
from torch.distributed import TCPStore

pytestmark = pytest.mark.slow

TORCHRUN = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
ACCELERATE = [
    "-m",
    "accelerate.commands.accelerate_cli",
    "launch",
    "--num_processes",
    "2",
    "--num_machines",
    "1",
]


@pytest.fixture
def train(tiny_model: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[str]:
    """What follows a launcher: 400 rows, 50 steps."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    flags = ["--model", str(tiny_model), "--task", "sample-boolq", "--rows", "400", *SMALL]
    return ["-m", "doratune", "train", *flags, "--output", "run"]


def launch(
    launcher: list[str], command: list[str], environment: dict[str, str] | None = None
) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, *launcher, *command],
        env={**os.environ, **(environment or {})},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def finish(process: subprocess.Popen[str]) -> tuple[str, str]:
    with process:
        return process.communicate(timeout=300)


def losses_so_far() -> list[float]:
    return losses(Path("run")) if Path("run/metrics.jsonl").exists() else []


def test_torchrun_passes_signals_on_and_trains_the_batch_that_was_asked_for(train: list[str]) -> None:
    """SIGTERM stops the run, Ctrl-C stops the resumed one, and a third start finishes it."""
    for number, more in ((signal.SIGTERM, []), (signal.SIGINT, ["--resume"])):
        process = launch(TORCHRUN, [*train, *more])
        deadline, begun = time.monotonic() + 240, len(losses_so_far())
        while len(losses_so_far()) < begun + 2:
            assert process.poll() is None and time.monotonic() < deadline, "training never began"
            time.sleep(0.02)
        process.send_signal(number)
        _, err = finish(process)
        assert process.returncode != 0
        assert err.count("stopping after this step") == err.count("interrupted after step") == 1, err
        stopped = len(losses_so_far())
        assert begun + 2 <= stopped < 50 and Path(f"run/checkpoints/checkpoint-{stopped}").is_dir()

    process = launch(TORCHRUN, [*train, "--resume"])
    out, err = finish(process)
    assert process.returncode == 0, err
    assert out.count("run directory: run") == out.count("next: doratune eval") == 1
    said = ("layers on the engine", "faster code in the base model", "steps left", "change of the weights")
    assert [err.count(line) for line in said] == [1] * len(said), err
    assert len([line for line in err.splitlines() if "warns:" in line]) == len(
        {line for line in err.splitlines() if "warns:" in line}
    )
    record = json.loads(Path("run/record.json").read_text())
    processes = record["training"]["processes"]
    assert (processes["launcher"], processes["processes"], processes["sharing"]) == ("torchrun", 2, "ddp")
    rows = processes["micro_batch_size"] * processes["accumulation"] * processes["processes"]
    assert rows == processes["batch_size"] == 8
    assert len(losses_so_far()) == 50


def test_accelerate_on_cpus_starts_one_process_and_that_is_refused(train: list[str]) -> None:
    process = launch([*ACCELERATE, "--cpu"], train)
    _, err = finish(process)
    assert process.returncode != 0
    assert err.count("accelerate launch started one process, although more were asked for") == 1
    assert "torchrun --nproc-per-node N" in err and not Path("run").exists()


def test_mpi_as_accelerate_starts_it(train: list[str]) -> None:
    """Two processes with what Open MPI and ``accelerate launch --cpu --mpirun_hostfile`` set."""
    meeting = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    shared = {"ACCELERATE_USE_CPU": "True", "ACCELERATE_MIXED_PRECISION": "no", "MASTER_ADDR": "127.0.0.1"}
    shared |= {"MASTER_PORT": str(meeting.port), "TORCHELASTIC_USE_AGENT_STORE": "True"}
    shared |= {"OMPI_COMM_WORLD_SIZE": "2", "OMPI_COMM_WORLD_LOCAL_SIZE": "2"}
    both = [
        launch(
            train[:1],
            [*train[1:], "--steps", "2"],
            {**shared, "OMPI_COMM_WORLD_RANK": str(rank), "OMPI_COMM_WORLD_LOCAL_RANK": str(rank)},
        )
        for rank in range(2)
    ]
    printed = [finish(process) for process in both]
    assert [process.returncode for process in both] == [0, 0], printed
    assert printed[1] == ("", "")
    processes = json.loads(Path("run/record.json").read_text())["training"]["processes"]
    assert (processes["launcher"], processes["processes"]) == ("accelerate", 2)
