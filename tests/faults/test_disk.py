"""Disks that are full, read-only or taken away; files that have changed."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from faults_support import RUN, command, doratune

from doratune.records.layout import checkpoints

ADAPTER = "adapter/adapter_model.safetensors"


def mount(folder: Path, options: str) -> None:
    """Mount a file system in memory, or skip the test where that is not allowed."""
    folder.mkdir(exist_ok=True)
    done = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(folder)], capture_output=True, text=True
    )
    if done.returncode:
        pytest.skip(f"mounting is not allowed here: {done.stderr.strip()}")


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """Where a small file system is mounted."""
    folder = tmp_path / "disk"
    yield folder
    subprocess.run(["umount", "-l", str(folder)], capture_output=True)


@pytest.mark.parametrize("kib", [200, 300, 450])
def test_a_full_disk_stops_training_with_one_message(
    tiny_model: Path, whole_run: Path, disk: Path, kib: int, tell: Callable[[str], None]
) -> None:
    mount(disk, f"size={kib}k")
    flags = ["train", "--model", tiny_model, *RUN, "--output", disk / "run"]
    err = doratune(*flags, code=1)
    assert "No space left" in err, err
    subprocess.run(["mount", "-o", "remount,size=100m", str(disk)], check=True)
    doratune(*flags, "--resume")
    assert (disk / "run" / ADAPTER).read_bytes() == (whole_run / ADAPTER).read_bytes()
    tell(f"disk of {kib} KiB: one message, resumed on a larger one, adapter bit-equal")


def test_a_read_only_disk_is_refused(tiny_model: Path, disk: Path) -> None:
    mount(disk, "ro")
    err = doratune("train", "--model", tiny_model, *RUN, "--output", disk / "run", code=2)
    assert "the output folder may not be written to" in err and str(disk) in err


def test_a_folder_that_is_taken_away_stops_training(tiny_model: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    flags = command("train", "--model", tiny_model, *RUN, "--output", run)
    with subprocess.Popen(flags, stderr=subprocess.PIPE, text=True) as process:
        while not checkpoints(run):
            assert process.poll() is None
        shutil.rmtree(run, ignore_errors=True)
        _, err = process.communicate(timeout=300)
    assert process.returncode == 1 and "Traceback" not in err and str(run) in err, err
    assert not (run / "record.json").exists()


@pytest.mark.parametrize("damage", ["truncated", "one bit", "removed"])
@pytest.mark.parametrize("name", ["adapter_model.safetensors", "optimizer.pt", "trainer_state.json"])
def test_a_damaged_checkpoint_is_passed_over(
    tiny_model: Path, whole_run: Path, tmp_path: Path, damage: str, name: str
) -> None:
    run = tmp_path / "run"
    shutil.copytree(whole_run, run)
    for left in ("record.json", "adapter"):
        path = run / left
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    newest, before = reversed(checkpoints(run).values())
    path = newest / name
    content = bytearray(path.read_bytes())
    if damage == "truncated":
        path.write_bytes(content[: len(content) // 2])
    elif damage == "removed":
        path.unlink()
    else:
        content[len(content) // 2] ^= 1
        path.write_bytes(content)
    err = doratune("train", "--model", tiny_model, *RUN, "--output", run, "--resume")
    assert f"{newest.name} cannot be used: {name}" in err and f"{before.name} is used" in err
    assert (run / ADAPTER).read_bytes() == (whole_run / ADAPTER).read_bytes()
