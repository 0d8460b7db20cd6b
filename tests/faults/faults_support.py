"""Real commands in real processes."""

from __future__ import annotations

import os
import subprocess
import sys

RUN = [
    *("--task", "sample-boolq", "--rows", "480", "--batch-size", "8", "--cutoff", "512", "--rank", "4"),
    *("--dtype", "float32", "--learning-rate", "1e-2", "--warmup-steps", "1", "--steps", "60"),
    *("--save-steps", "2"),
]
"""Flags of a training run of 60 steps, with a checkpoint after every second one."""


def command(*arguments: object) -> list[str]:
    """``doratune`` as a process of its own."""
    return [sys.executable, "-m", "doratune", *map(str, arguments)]


def doratune(*arguments: object, code: int = 0) -> str:
    """Run ``doratune``; what it prints on stderr."""
    done = subprocess.run(command(*arguments), capture_output=True, text=True, env=os.environ)
    assert done.returncode == code, done.stderr
    assert "Traceback" not in done.stderr
    return done.stderr
