"""``benchmarks/pipeline`` and its reference script on a tiny model."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path

import pytest
from cli_support import Cli, lines
from quick_start import run_python
from safetensors.torch import load_file

from pipeline import bench
from pipeline.record import PhaseCost

PIPELINE = Path(__file__).parents[2] / "benchmarks" / "pipeline"


def python(script: Path, *arguments: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, str(script), *map(str, arguments)], capture_output=True, text=True, timeout=300
    )


def reference(*arguments: object) -> subprocess.CompletedProcess[str]:
    return run_python(PIPELINE / "reference.py", *arguments, cwd=Path.cwd())


def run_quickly(command: list[str], *, log: Path, threads: int | None) -> PhaseCost:
    """For ``run_command``, which ``tests/unit/bench/test_bench_pipeline.py`` holds to what it measures."""
    started = time.perf_counter()
    done = run_python(*command[1:], cwd=Path.cwd(), variables={"OMP_NUM_THREADS": str(threads)})
    assert command[0] == sys.executable and done.returncode == 0, done.stderr
    return PhaseCost(seconds=time.perf_counter() - started, peak_bytes=1)


def start_quickly() -> None:
    bench.run_command = run_quickly


@pytest.mark.slow
def test_both_sides_train_alike_and_give_the_same_answers(
    tiny_model: Path, boolq_rows: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    flags = ["--train-data", boolq_rows, "--test-data", boolq_rows, "--train-rows", 20, "--test-rows", 6]
    flags += ["--model", tiny_model, "--dtype", "float32", "--threads", 1]
    done = run_python(PIPELINE, *flags, "--output", "pipeline.json", cwd=tmp_path, before=start_quickly)
    assert done.returncode == 0, done.stderr
    assert "20 + 6 rows" in done.stdout and "written: pipeline.json" in done.stdout
    assert "round-1: reference-generate took" in done.stderr
    record = json.loads(Path("pipeline.json").read_text())
    (entry,) = record["rounds"]
    assert entry["same_answers"] == {"rows": 6, "same": 6, "differing": []}
    assert entry["steps"] == {"doratune": 2, "reference": 2}
    assert entry["final_loss"]["doratune"] == pytest.approx(entry["final_loss"]["reference"], rel=1e-3)
    assert len(entry["phases"]) == 5
    assert record["machine"]["threads"] == 1 and record["model"]["dtype"] == "float32"
    assert (record["train_rows"], record["train_data"]["rows"], record["test_rows"]) == (20, 24, 6)
    assert record["train_data"]["source"] == boolq_rows.name
    assert str(boolq_rows.parent) not in Path("pipeline.json").read_text()


@pytest.mark.slow
def test_the_reference_trains_the_adapter_that_doratune_trains(
    cli: Cli, tiny_model: Path, boolq_rows: Path
) -> None:
    # All rows in every batch: the two samplers draw other orders from the same seed.
    flags = ["--model", tiny_model, "--data", boolq_rows, "--rows", 16, "--batch-size", 16, "--epochs", 3]
    flags += ["--dropout", 0, "--warmup-steps", 0, "--rank", 4, "--cutoff", 512, "--dtype", "float32"]
    outcome = cli("train", "--method", "dora", "--output", "ours", *flags)
    assert outcome.code == 0, outcome.err
    done = reference("train", "--output", "theirs", "--loss-on", "answer", *flags)
    assert done.returncode == 0, done.stderr
    ours = load_file("ours/adapter/adapter_model.safetensors")
    theirs = load_file("theirs/adapter_model.safetensors")
    assert ours.keys() == theirs.keys()
    for name, tensor in ours.items():
        # Rounding turns a step only where the gradient is next to nothing; other rows or losses turn many.
        change = 0.01 if "lora_B" in name else 1e-4  # B begins at zero, so it is nothing but steps
        assert (tensor - theirs[name]).norm() < change * theirs[name].norm(), name
    done = reference("eval", "--model", tiny_model, "--adapter", "theirs", "--task", "boolq", "--data",
                     boolq_rows, "--eval-rows", 2, "--output", "answers.jsonl")  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert [line["row"] for line in lines(Path("answers.jsonl"))] == [0, 1]


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["--train-data", "absent.json", "--test-data", "absent.json"], "absent.json"),
        (["--test-data", "absent.json"], "--train-data"),
        (["--train-data", "a.json", "--test-data", "a.json", "--rounds", "0"], "rounds"),
    ],
)
def test_bad_input(
    arguments: list[str], expected: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    done = python(PIPELINE, *arguments, "--output", "out.json")
    assert done.returncode == 2, done.stderr
    assert expected in done.stderr and "Traceback" not in done.stderr
    assert not Path("out.json").exists()


@pytest.mark.slow
def test_a_model_that_is_not_there_is_found_before_anything_is_timed(boolq_rows: Path) -> None:
    done = python(PIPELINE, "--train-data", boolq_rows, "--test-data", boolq_rows, "--model", "./nowhere")
    assert done.returncode == 2 and "no such run, adapter or model folder" in done.stderr
    assert "round-1" not in done.stderr


@pytest.mark.slow
def test_the_reference_names_a_missing_file(tmp_path: Path) -> None:
    done = reference("train", "--data", tmp_path / "absent.json", "--output", tmp_path / "out")
    assert done.returncode == 2 and "absent.json" in done.stderr and "Traceback" not in done.stderr
    assert not (tmp_path / "out").exists()


def test_help() -> None:
    done = python(PIPELINE, "--help")
    assert done.returncode == 0
    for flag in ("--train-data", "--test-rows", "--rounds", "--json", "--overwrite"):
        assert flag in done.stdout


def test_it_is_not_a_verb_of_doratune(cli: Cli) -> None:
    outcome = cli("bench", "pipeline", "--help")
    assert outcome.code == 2 and "expected: one of op, step" in outcome.err
