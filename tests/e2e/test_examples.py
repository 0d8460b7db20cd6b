"""Every example runs, on a tiny model, and leaves an adapter that moved."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient
from quick_start import run_python
from safetensors.torch import load_file

EXAMPLES = Path(__file__).parents[2] / "examples"
PROGRAMS = [path for path in EXAMPLES.rglob("*") if path.suffix in (".py", ".sh", ".ipynb")]


def run(*command: object, cwd: Path, **variables: str) -> subprocess.CompletedProcess[str]:
    """Run a command with the Python, and the programs, of the tests' environment."""
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    result = subprocess.run(
        list(map(str, command)),
        cwd=cwd,
        env={**os.environ, "PATH": path, **variables},
        capture_output=True,
        text=True,
        timeout=500,
    )
    assert result.returncode == 0, result.stdout + result.stderr
    return result


def assert_trained(adapter: Path) -> None:
    """DoRA's magnitudes are there, and no B is zero, as it is before the first step."""
    weights = load_file(adapter / "adapter_model.safetensors")
    assert any("magnitude" in name for name in weights)
    assert all(value.any() for name, value in weights.items() if "lora_B" in name)


def test_none_is_long() -> None:
    assert len(PROGRAMS) == 9
    for path in PROGRAMS:
        if path.suffix != ".ipynb":
            assert len(path.read_text(encoding="utf-8").splitlines()) < 60, path


@pytest.mark.slow
@pytest.mark.parametrize("script", ["trl_sft.py", "transformers_trainer.py", "qdora_4bit.py"])
def test_a_script_with_the_one_line(script: str, tiny_model: Path, tmp_path: Path) -> None:
    flags = ["--model", tiny_model, "--output", tmp_path / "out", "--steps", 3]
    result = run_python(EXAMPLES / script, *flags, cwd=tmp_path)
    assert result.returncode == 0, result.stdout + result.stderr
    assert "14 Linear layers on the engine" in result.stdout.replace("Linear4bit", "Linear")
    assert_trained(tmp_path / "out")


@pytest.mark.slow
def test_a_merged_model_answers_without_the_adapter(dora_run: Path, tmp_path: Path) -> None:
    flags = ["--output", tmp_path / "merged", "--prompts", "is the sky blue", "--tokens", 4]
    result = run_python(EXAMPLES / "merge_and_serve.py", dora_run, *flags, cwd=tmp_path)
    assert result.returncode == 0, result.stdout + result.stderr
    assert result.stdout.splitlines()[-1].startswith("is the sky blue")
    assert (tmp_path / "merged" / "model.safetensors").is_file()
    assert not (tmp_path / "merged" / "adapter_config.json").exists()


@pytest.mark.slow
def test_a_converted_adapter_is_a_plain_lora(dora_run: Path, tmp_path: Path) -> None:
    flags = ["--rank", 16, "--output", tmp_path / "lora"]
    result = run_python(EXAMPLES / "convert_and_load.py", dora_run, *flags, cwd=tmp_path)
    assert result.returncode == 0, result.stdout + result.stderr
    assert "rank 16, DoRA: False" in result.stdout
    assert len(result.stdout.splitlines()) > 3
    weights = load_file(tmp_path / "lora" / "adapter_model.safetensors")
    assert weights and all(".lora_A." in name or ".lora_B." in name for name in weights)


@pytest.mark.slow
def test_fsdp2_on_two_processes(tiny_model: Path, tmp_path: Path) -> None:
    flags = ["--model", tiny_model, "--output", tmp_path / "out", "--steps", 3]
    result = run("sh", EXAMPLES / "fsdp2" / "launch.sh", *flags, cwd=tmp_path, PROCESSES="2")
    assert "14 of 14 LoRA and DoRA layers ran on the engine in the first forward pass" in result.stdout
    assert_trained(tmp_path / "out")


@pytest.mark.slow
def test_own_data(tiny_model: Path, tmp_path: Path) -> None:
    run("sh", EXAMPLES / "own_data" / "run.sh", "own", cwd=tmp_path, MODEL=str(tiny_model), FLAGS="--rank 4")
    assert_trained(tmp_path / "own" / "dora" / "adapter")
    assert "multiple-choice" in (tmp_path / "own" / "report" / "report.html").read_text(encoding="utf-8")


@pytest.mark.slow
def test_the_notebook(tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MODEL", str(tiny_model))
    notebook = nbformat.read(EXAMPLES / "compare.ipynb", as_version=4)
    assert all(not cell.outputs for cell in notebook.cells if cell.cell_type == "code"), "clear the outputs"
    NotebookClient(notebook, timeout=300, resources={"metadata": {"path": str(tmp_path)}}).execute()
    outputs = [output for cell in notebook.cells if cell.cell_type == "code" for output in cell.outputs]
    assert sum("image/png" in output.get("data", {}) for output in outputs) == 2
