"""An adapter is used on another machine: with PEFT alone, and by doratune, which finds its base by name."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from cli_support import SMALL, Cli

from doratune.models.builtin import BUILTIN


@pytest.fixture
def builtin(tiny_model: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """The tiny model as if it were the built-in one, in this machine's cache."""
    from doratune.models import builtin, load

    folder = tmp_path / "cache" / "models" / "smollm2-135m-0123456789ab"
    shutil.copytree(tiny_model, folder)
    for module in (builtin, load):
        monkeypatch.setattr(module, "resolve_builtin", lambda name: (folder, "local cache"))
    return folder


def trained(cli: Cli, model: object) -> Path:
    flags = ["--model", model, "--task", "sample-boolq", "--rows", 32, *SMALL, "--learning-rate", "1e-2"]
    outcome = cli("train", *flags, "--save-steps", 2, "--output", "run")
    assert outcome.code == 0, outcome.err
    return Path("run/adapter")


def test_an_adapter_of_the_built_in_model_names_it(cli: Cli, builtin: Path) -> None:
    adapter = trained(cli, "smollm2-135m")
    (checkpoint,) = Path("run/checkpoints").glob("checkpoint-4")
    for folder in (adapter, checkpoint):
        config = json.loads((folder / "adapter_config.json").read_text())
        assert config["base_model_name_or_path"] == "smollm2-135m" in BUILTIN
    shutil.copytree(adapter, "elsewhere")
    outcome = cli("eval", "elsewhere", "--task", "sample-boolq", "--eval-rows", 4, "--output", "out")
    assert outcome.code == 0, outcome.err
    for file in adapter.iterdir():
        assert str(builtin.parent).encode() not in file.read_bytes(), (
            f"{file.name} names this machine's cache"
        )


def test_the_card_s_code_loads_the_adapter_with_peft_alone(cli: Cli, builtin: Path) -> None:
    from doratune.models.load import load_model
    from doratune.peft.load import load_adapter

    adapter = trained(cli, "smollm2-135m")
    text = (adapter / "README.md").read_text(encoding="utf-8")
    assert "More Information" not in text and re.search(r"\| loss of the last step \| \d", text)
    (code,) = re.findall(r"```python\n(.*?)```", text, flags=re.DOTALL)
    names: dict[str, Any] = {}
    exec(code.replace('"FOLDER"', repr(str(builtin))).replace('"ADAPTER"', repr(str(adapter))), names)
    ids = names["tokenizer"]("the sky is blue", return_tensors="pt")["input_ids"]
    ours = load_adapter(load_model("smollm2-135m", dtype="float32").model, adapter)
    with torch.no_grad():
        torch.testing.assert_close(names["model"](ids).logits, ours(ids).logits)


def test_a_base_that_is_not_here_is_one_message_and_the_hub_is_not_asked(
    cli: Cli, tiny_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    base = Path(shutil.copytree(tiny_model, "base"))
    adapter = trained(cli, base)
    shutil.copytree(adapter, "elsewhere")
    base.rename("moved")
    monkeypatch.setattr(
        "doratune.models.load._from_hub", lambda name, kwargs: pytest.fail(f"asked for {name}")
    )
    flags = ["--task", "sample-boolq", "--eval-rows", 4, "--output", "out"]
    for target in ("elsewhere", adapter, adapter.parent):
        outcome = cli("eval", target, *flags)
        assert outcome.code == 2 and "the folder with the base model is not there" in outcome.err
        assert f"doratune eval {target} --model" in outcome.err and "Traceback" not in outcome.err
    outcome = cli("analyze", adapter.parent, "--output", "analysis")
    assert outcome.code == 2 and "the folder with the base model is not there" in outcome.err, outcome.err
    assert cli("eval", "elsewhere", *flags, "--model", "moved").code == 0
