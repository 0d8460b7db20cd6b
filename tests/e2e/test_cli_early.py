"""What can be refused without a model is refused before torch is imported: a mistake costs a second."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

COMMANDS = {
    "missing data file": "train --data no.json --output run",
    "unknown task": "train --task bolq --output run",
    "unknown preset": "train --task sample-boolq --preset dmeo --output run",
    "output with a run": "train --task sample-boolq --output taken",
    "output that is a file": "train --task sample-boolq --output file",
    "model that looks like a path": "train --model ./nowhere --task sample-boolq --output run",
    "missing GGUF file": "train --model no.gguf --task sample-boolq --output run",
    "misspelt built-in model": "train --model smollm2-135n --task sample-boolq --output run",
    "nothing to train on": "train --output run",
    "contradicting settings": "train --method full --load-in-4bit --task sample-boolq --output run",
    "resume and overwrite": "train --resume --overwrite --task sample-boolq --output taken",
    "nothing to resume": "train --resume --task sample-boolq --output run",
    "warm-up longer than the run": "train --task sample-boolq --steps 8 --warmup-steps 9 --output run",
    "warm-up longer than the rows": "train --task sample-boolq --rows 16 --warmup-steps 9 --output run",
    "uneven batch": "train --task sample-boolq --micro-batch-size 3 --output run",
    "eval of nothing": "eval ./nowhere --task boolq",
    "eval of an unknown task": "eval smollm2-135m --task bolq",
    "eval of a missing file": "eval smollm2-135m --task boolq --data no.json",
    "eval without labels": "eval smollm2-135m --task boolq --format continuation --protocol generate",
    "unknown flag": "train --task sample-boolq --lr 1e-3 --output run",
    "compare of an unknown task": "compare --task bolq --output run",
    "compare on a missing file": "compare --task boolq --data no.json --output run",
    "unknown plan": "study smollm --output run",
}

CODE = """
import sys
from doratune.cli.main import main
try:
    code = main(sys.argv[1:])
except SystemExit as end:
    code = end.code
loaded = [name for name in ("torch", "transformers", "peft", "datasets") if name in sys.modules]
sys.exit(f"imported {loaded}" if loaded else code)
"""


@pytest.mark.parametrize("case", COMMANDS)
def test_no_torch_before_a_refusal(case: str, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("precious")
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken" / "config.yaml").write_text("rank: 4\n")
    command = [sys.executable, "-c", CODE, *COMMANDS[case].split()]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 2, done.stderr
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "run").exists() and (tmp_path / "file").read_text() == "precious"
