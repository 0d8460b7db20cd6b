"""The base install is enough for the engine; every other verb says in one line what it needs."""

from __future__ import annotations

import importlib.metadata
import tomllib
from pathlib import Path
from textwrap import dedent

import pytest
from linked_environment import LinkedEnvironment

from doratune.cli.installed import ENGINE_VERBS, INSTALL, check_installed
from doratune.cli.main import VERBS
from doratune.errors import InputError

ROOT = Path(__file__).parents[3]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]


@pytest.fixture(scope="module")
def base_install(tmp_path_factory: pytest.TempPathFactory) -> LinkedEnvironment:
    """What ``pip install doratune`` makes of an empty environment, with doratune from the source tree."""
    environment = LinkedEnvironment(tmp_path_factory.mktemp("environment"), PROJECT["dependencies"])
    (environment.packages / "doratune").symlink_to(ROOT / "src" / "doratune")
    metadata = environment.packages / "doratune-0.dist-info"
    metadata.mkdir()
    lines = ["Metadata-Version: 2.1", "Name: doratune", "Version: 0"]
    lines += [f"Requires-Dist: {one}" for one in PROJECT["dependencies"]]
    lines += [f'Requires-Dist: {one}; extra == "cli"' for one in PROJECT["optional-dependencies"]["cli"]]
    (metadata / "METADATA").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return environment


def test_the_base_install_lacks_what_the_extra_brings(base_install: LinkedEnvironment) -> None:
    left_out = {"trl", "datasets", "pyarrow", "pandas", "scipy", "statsmodels", "matplotlib", "gguf"}
    assert not {path.name for path in base_install.packages.iterdir()} & left_out


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
def test_the_base_install_is_enough_for_the_engine(base_install: LinkedEnvironment, tmp_path: Path) -> None:
    (tmp_path / "script.py").write_text(dedent(USES_THE_ENGINE), encoding="utf-8")
    result = base_install.run("python", "script.py", cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    assert "7 Linear layers on the engine" in result.stdout and "gradients True" in result.stdout
    result = base_install.run("python", "-m", "doratune", "run", "script.py", "automatic", cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    assert "doratune: 7 Linear layers on the engine" in result.stderr


def test_env_says_that_other_verbs_are_not_installed(base_install: LinkedEnvironment, tmp_path: Path) -> None:
    result = base_install.run("python", "-m", "doratune", "env", cwd=tmp_path)
    assert result.returncode == 0 and not result.stderr, result.stderr
    assert f"no ({INSTALL})" in result.stdout


def test_other_verbs_say_in_one_line_what_they_need(base_install: LinkedEnvironment, tmp_path: Path) -> None:
    for verb in set(VERBS) - set(ENGINE_VERBS):
        result = base_install.run("python", "-m", "doratune", verb, "--rows", "3", cwd=tmp_path)
        assert result.returncode == 2 and not result.stdout
        assert result.stderr.startswith(f"doratune: doratune {verb} needs packages that are not installed (")
        assert result.stderr.endswith(f"): {INSTALL}\n") and len(result.stderr.splitlines()) == 1
    assert base_install.run("python", "-m", "doratune", "--help", cwd=tmp_path).returncode == 0


def test_a_package_that_is_too_old_is_named_with_what_is_needed(monkeypatch: pytest.MonkeyPatch) -> None:
    """With transformers 4.57 a Trainer weighs a short last batch differently, so training is refused."""
    check_installed("train")
    installed = importlib.metadata.version
    monkeypatch.setattr(
        importlib.metadata, "version", lambda name: "4.57.1" if name == "transformers" else installed(name)
    )
    with pytest.raises(InputError) as caught:
        check_installed("train")
    message = str(caught.value)
    assert "transformers 4.57.1" in message and "transformers<5.40,>=5.6.2" in message
    assert INSTALL in message
    for verb in ENGINE_VERBS:
        check_installed(verb)
