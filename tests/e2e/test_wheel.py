"""The wheel, installed outside the repository: all files are in it, and the demo runs from it.

The other packages are those at hand, and only those that the wheel asks for; that pip finds them on an index
is not tested here.
"""

from __future__ import annotations

import subprocess
import sys
import zipfile
from importlib.metadata import PathDistribution
from pathlib import Path

import pytest
from linked_environment import LinkedEnvironment

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel that ``python -m build`` makes from its own source archive."""
    pytest.importorskip("hatchling")
    folder = tmp_path_factory.mktemp("dist")
    command = [sys.executable, "-m", "build", "--no-isolation", "--outdir", str(folder), str(ROOT)]
    result = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert result.returncode == 0, result.stdout + result.stderr
    return next(folder.glob("*.whl"))


@pytest.mark.slow
def test_every_file_of_the_package_is_in_the_wheel(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        packed = {name for name in archive.namelist() if ".dist-info/" not in name}
    files = [path for path in (ROOT / "src").rglob("*") if path.is_file() and "__pycache__" not in path.parts]
    assert packed == {path.relative_to(ROOT / "src").as_posix() for path in files}
    endings = {Path(name).suffix for name in packed} | {Path(name).name for name in packed}
    assert {".yaml", ".j2", ".css", "py.typed"} <= endings


@pytest.mark.slow
def test_the_demo_runs_from_the_wheel(wheel: Path, tiny_model: Path, tmp_path: Path) -> None:
    [metadata] = [one for one in zipfile.Path(wheel).iterdir() if one.name.endswith(".dist-info")]
    requirements = PathDistribution(metadata).requires or []
    environment = LinkedEnvironment(tmp_path / "environment", requirements, extra="cli")
    pip = [sys.executable, "-m", "pip", "--python", str(environment.python), "install", "--quiet"]
    subprocess.run([*pip, "--no-index", "--no-deps", str(wheel)], check=True)

    demo = ["doratune", "compare", "--preset", "demo", "--output", "runs/demo"]
    small = ["--model", tiny_model, "--cutoff", 512, "--rows", 8, "--warmup-steps", 1, "--eval-rows", 4]
    result = environment.run(*demo, *small, cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    assert "sample-winogrande" in result.stdout
    assert (tmp_path / "runs" / "demo" / "report.html").is_file()

    where = environment.run("python", "-c", "import doratune; print(doratune.__file__)", cwd=tmp_path)
    assert Path(where.stdout.strip()).is_relative_to(environment.packages)
