"""The base install is enough for the engine; every other verb says in one line what it needs."""

from __future__ import annotations

import importlib.metadata
import os
import subprocess
import sys
import tomllib
from collections.abc import Iterable
from pathlib import Path
from textwrap import dedent

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from doratune.cli.installed import ENGINE_VERBS, INSTALL
from doratune.cli.main import VERBS

ROOT = Path(__file__).parents[3]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
EXTRAS = {
    name: [one for one in requirements if not one.startswith("doratune[")]
    for name, requirements in PROJECT["optional-dependencies"].items()
}


def brought(requirements: Iterable[str]) -> set[str]:
    """The distributions that an installation of ``requirements`` brings here."""
    found: set[str] = set()
    left = [(Requirement(one), "") for one in requirements]
    while left:
        one, extra = left.pop()
        name = canonicalize_name(one.name)
        if one.marker is not None and not one.marker.evaluate({"extra": extra}):
            continue
        if name in found and not one.extras:
            continue
        found.add(name)
        for line in importlib.metadata.requires(name) or []:
            left += [(Requirement(line), each) for each in ("", *one.extras)]
    return found


@pytest.fixture(scope="module")
def base_install(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of packages as ``pip install doratune`` fills it, made of links to those that are here."""
    folder = tmp_path_factory.mktemp("packages")
    for name in brought(PROJECT["dependencies"]):
        distribution = importlib.metadata.distribution(name)
        places = {file.parts[0] for file in distribution.files or () if file.parts[0] not in ("..", "bin")}
        for place in places - {"__pycache__"}:
            link = folder / place
            if not link.exists():
                link.symlink_to(str(distribution.locate_file(place)))
    (folder / "doratune").symlink_to(ROOT / "src" / "doratune")
    metadata = folder / "doratune-0.dist-info"
    metadata.mkdir()
    lines = ["Metadata-Version: 2.1", "Name: doratune", "Version: 0"]
    lines += [f"Requires-Dist: {one}" for one in PROJECT["dependencies"]]
    lines += [f'Requires-Dist: {one}; extra == "{name}"' for name in ("cli", "bnb") for one in EXTRAS[name]]
    (metadata / "METADATA").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return folder


def python(base_install: Path, *arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    """Python without the packages that are installed here, but with those in ``base_install``."""
    return subprocess.run(
        [sys.executable, "-S", *arguments],
        cwd=cwd,
        env={**os.environ, "PYTHONPATH": str(base_install)},
        capture_output=True,
        text=True,
        timeout=120,
    )


def test_the_base_install_lacks_what_the_extra_brings(base_install: Path) -> None:
    left_out = {"trl", "datasets", "pyarrow", "pandas", "scipy", "statsmodels", "matplotlib", "gguf"}
    assert not {path.name for path in base_install.iterdir()} & left_out


USES_THE_ENGINE = """
    import sys
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import LlamaConfig, LlamaForCausalLM
    import doratune
    from doratune.speedups import speed_up

    config = LlamaConfig(vocab_size=32, hidden_size=32, intermediate_size=64, num_hidden_layers=1,
                         num_attention_heads=2, num_key_value_heads=2, max_position_embeddings=64)
    model = get_peft_model(LlamaForCausalLM(config), LoraConfig(use_dora=True, target_modules="all-linear"))
    if sys.argv[1:] != ["automatic"]:
        print(doratune.enable(model))
        print(speed_up(model, training=True))
    ids = torch.arange(32).view(2, 16)
    model(input_ids=ids, labels=ids).loss.backward()
    print("gradients", any(one.grad is not None for one in model.parameters()))
    print(doratune.functional.dora_linear.__name__, doratune.reference.__name__)
"""


@pytest.mark.slow
def test_the_base_install_is_enough_for_the_engine(base_install: Path, tmp_path: Path) -> None:
    (tmp_path / "script.py").write_text(dedent(USES_THE_ENGINE), encoding="utf-8")
    result = python(base_install, "script.py", cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    assert "7 Linear layers on the engine" in result.stdout and "gradients True" in result.stdout
    result = python(base_install, "-m", "doratune", "run", "script.py", "automatic", cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    assert "doratune: 7 Linear layers on the engine" in result.stderr


def test_env_says_that_the_command_line_is_not_installed(base_install: Path, tmp_path: Path) -> None:
    result = python(base_install, "-m", "doratune", "env", cwd=tmp_path)
    assert result.returncode == 0 and not result.stderr, result.stderr
    assert f"no ({INSTALL})" in result.stdout


def test_other_verbs_say_in_one_line_what_they_need(base_install: Path, tmp_path: Path) -> None:
    for verb in set(VERBS) - set(ENGINE_VERBS):
        result = python(base_install, "-m", "doratune", verb, "--rows", "3", cwd=tmp_path)
        assert result.returncode == 2 and not result.stdout
        assert result.stderr.startswith(f"doratune: doratune {verb} needs packages that are not installed (")
        assert result.stderr.endswith(f"): {INSTALL}\n") and len(result.stderr.splitlines()) == 1
    assert python(base_install, "-m", "doratune", "--help", cwd=tmp_path).returncode == 0
