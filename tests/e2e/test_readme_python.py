"""The README's Python runs as it is pasted."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from doratune.models.builtin import resolve_builtin

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.slow
def test_the_python_of_the_readme_runs_as_it_is_pasted(tmp_path: Path) -> None:
    """A local folder with the hub's name of the model stands for the hub."""
    (code,) = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(encoding="utf-8"), re.DOTALL)
    (name,) = re.findall(r'^name = "(.*)"$', code, flags=re.MULTILINE)
    model, _ = resolve_builtin("smollm2-135m")
    (tmp_path / name).parent.mkdir(parents=True)
    (tmp_path / name).symlink_to(model)
    (tmp_path / "pasted.py").write_text(code, encoding="utf-8")

    done = subprocess.run(
        [sys.executable, "pasted.py"],
        cwd=tmp_path,
        env={**os.environ, "HF_HUB_OFFLINE": "1"},
        capture_output=True,
        text=True,
        timeout=300,
    )

    assert done.returncode == 0, done.stderr
    assert "60 Linear layers on the engine" in done.stdout  # two in each of 30 blocks
    assert (tmp_path / "adapter" / "adapter_model.safetensors").is_file()
