"""Two thousand steps: nothing grows but the metrics."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import psutil
import pytest
from faults_support import RUN, command

STEPS = 2000


def size_of(run: Path, *, except_for: str) -> int:
    """Bytes in a folder from which files may disappear meanwhile."""
    with suppress(FileNotFoundError):
        files = [path for path in run.rglob("*") if path.is_file() and path.name != except_for]
        return sum(path.stat().st_size for path in files)
    return size_of(run, except_for=except_for)


@pytest.mark.timeout(3600)
def test_memory_and_disk_stay_flat(tiny_model: Path, tmp_path: Path, tell: Callable[[str], None]) -> None:
    run = tmp_path / "run"
    flags = ["train", "--model", tiny_model, *RUN, "--steps", STEPS, "--save-steps", 100, "--output", run]
    memory: dict[int, int] = {}
    disk: dict[int, int] = {}
    with subprocess.Popen(command(*flags), stderr=subprocess.DEVNULL, env=os.environ) as process:
        watched = psutil.Process(process.pid)
        while process.poll() is None:
            metrics = run / "metrics.jsonl"
            step = metrics.read_bytes().count(b"\n") if metrics.exists() else 0
            try:
                memory[step] = watched.memory_info().rss
            except psutil.NoSuchProcess:
                break
            disk[step] = size_of(run, except_for="metrics.jsonl")
    assert process.returncode == 0
    early = max(size for step, size in memory.items() if 200 <= step <= 600)
    late = max(size for step, size in memory.items() if step >= STEPS - 400)
    assert late < 1.03 * early, f"{early:,} bytes at first, {late:,} in the end"
    assert max(disk.values()) < 4 * min(size for step, size in disk.items() if step >= 150)
    tell(f"{STEPS} steps: {early / 2**20:.0f} MiB after 600 steps, {late / 2**20:.0f} MiB in the end")
