"""``doratune train --method full`` and ``--method dora-attached-norm`` on a tiny model."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from cli_support import SMALL, Cli, lines, losses
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM


@pytest.fixture
def flags(tiny_model: Path) -> list[object]:
    return [
        "--model",
        tiny_model,
        "--task",
        "sample-boolq",
        "--rows",
        "48",
        *SMALL,
        "--learning-rate",
        "1e-3",
    ]


def weights(folder: Path | str) -> dict[str, torch.Tensor]:
    return load_file(Path(folder) / "model.safetensors")


def test_full_fine_tuning_trains_every_weight(cli: Cli, flags: list[object], tiny_model: Path) -> None:
    outcome = cli(
        "train", "--method", "full", *flags, "--keep-checkpoints", 3, "--save-steps", 1, "--output", "run"
    )
    assert outcome.code == 0, outcome.err
    record = json.loads(Path("run/record.json").read_text())
    assert record["method"] == "full" and record["parameters"]["share"] == 1.0
    base, trained = weights(tiny_model), weights("run/model")
    assert record["parameters"]["trainable"] == sum(weight.numel() for weight in base.values())
    assert record["training"]["changes"].keys() == {"W"}
    largest = max(float((trained[name].double() - base[name].double()).abs().max()) for name in base)
    assert record["training"]["changes"]["W"]["largest"] == pytest.approx(largest, rel=1e-6)
    assert trained.keys() == base.keys() and not Path("run/adapter").exists()
    assert all((trained[name] != weight).any() for name, weight in base.items())
    assert not list(Path("run").rglob("model/*.bin"))
    kept = sorted(path.name for path in Path("run/checkpoints").glob("checkpoint-*"))
    assert kept == ["checkpoint-4", "checkpoint-5", "checkpoint-6"]
    assert all(
        trained[name].equal(weight) for name, weight in weights("run/checkpoints/checkpoint-6").items()
    )


def test_a_fully_fine_tuned_run_is_evaluated_with_its_own_weights(cli: Cli, flags: list[object]) -> None:
    assert cli("train", "--method", "full", *flags, "--output", "run").code == 0
    task = ["--task", "sample-boolq", "--eval-rows", 8]
    outcome = cli("eval", "run", *task)
    assert outcome.code == 0, outcome.err
    shutil.copytree("run/model", "plain")
    assert cli("eval", "plain", *task, "--output", "eval-plain", "--dtype", "float32").code == 0
    own, plain = (lines(Path(folder, "predictions/sample-boolq.jsonl")) for folder in ("run", "eval-plain"))
    assert [row["scores"] for row in own] == [row["scores"] for row in plain]
    again = cli("eval", "run/model", *task)
    assert again.code == 2 and "already exist" in again.err, "the folder of the weights is its run"
    other = cli("eval", "run", *task, "--overwrite", "--model", "smollm2-135m")
    assert other.code == 2 and "--model" in other.err


def test_another_configuration_over_the_trained_weights_is_refused(cli: Cli, flags: list[object]) -> None:
    assert cli("train", "--method", "full", *flags, "--output", "run").code == 0
    path = Path("run/model/config.json")
    path.write_text(json.dumps({**json.loads(path.read_text()), "rms_norm_eps": 0.1}))
    command = ["eval", "run", "--task", "sample-boolq", "--eval-rows", 4]
    outcome = cli(*command)
    assert outcome.code == 2 and "rms_norm_eps is 1e-06 in the run and 0.1 here" in outcome.err
    assert "--model" not in outcome.err
    assert cli(*command, "--allow-other-base").code == 0
    (entry,) = json.loads(Path("run/record.json").read_text())["evaluations"]
    assert entry["other_base"]["config"]["settings"]["rms_norm_eps"] == 0.1


def test_full_fine_tuning_resumes_where_it_stopped(cli: Cli, flags: list[object]) -> None:
    every = [*flags, "--method", "full", "--save-steps", 2]
    assert cli("train", *every, "--output", "whole").code == 0
    shutil.copytree("whole", "killed")
    Path("killed/record.json").unlink()
    shutil.rmtree("killed/model")
    shutil.rmtree("killed/checkpoints/checkpoint-6")
    unfinished = cli("eval", "killed", "--task", "sample-boolq")
    assert unfinished.code == 2 and "the run is not finished" in unfinished.err
    outcome = cli("train", *every, "--output", "killed", "--resume")
    assert outcome.code == 0, outcome.err
    assert losses(Path("killed")) == losses(Path("whole"))
    killed = weights("killed/model")
    assert all(killed[name].equal(weight) for name, weight in weights("whole/model").items())
    records = [json.loads(Path(run, "record.json").read_text()) for run in ("whole", "killed")]
    assert records[0]["training"]["changes"] == records[1]["training"]["changes"]
    taken = cli("train", *every, "--output", "whole")
    assert taken.code == 2 and "model" in taken.err


def test_weights_stay_float32_where_bfloat16_is_computed_in(
    cli: Cli, flags: list[object], tiny_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An update of 1e-6 is far below the last bit of most weights in bfloat16."""
    monkeypatch.setattr("doratune.models.precision._has_fast_bfloat16", lambda _device: True)
    small = [*flags, "--method", "full", "--learning-rate", "1e-6", "--steps", 3]
    for dtype, moved in (("auto", True), ("bfloat16", False)):
        outcome = cli("train", *small, "--dtype", dtype, "--output", dtype)
        assert outcome.code == 0, outcome.err
        base = AutoModelForCausalLM.from_pretrained(tiny_model, dtype="float32" if moved else "bfloat16")
        name = "model.layers.0.mlp.up_proj.weight"
        changed = (weights(f"{dtype}/model")[name] != base.state_dict()[name]).float().mean()
        assert (changed > 0.9) if moved else (changed < 0.3)
    records = [json.loads(Path(run, "record.json").read_text()) for run in ("auto", "bfloat16")]
    assert [record["model"]["dtype"] for record in records] == ["float32", "bfloat16"]
    assert cli("train", *small, "--dtype", "float32", "--output", "exact").code == 0
    assert losses(Path("auto")) != losses(Path("exact")), "auto is computed in bfloat16"
    assert losses(Path("auto")) == pytest.approx(losses(Path("exact")), abs=0.03)


def test_the_report_has_a_full_run_next_to_an_adapter(cli: Cli, flags: list[object]) -> None:
    for method in ("lora", "full"):
        assert cli("train", "--method", method, *flags, "--output", f"runs/{method}").code == 0
        assert cli("eval", f"runs/{method}", "--task", "sample-boolq", "--eval-rows", 8).code == 0
    outcome = cli("report", "runs/lora", "runs/full", "--output", "report", "--json")
    assert outcome.code == 0, outcome.err
    record = json.loads(outcome.out)
    (cell,) = record["cells"]
    assert [(arm["name"], arm["engine"]) for arm in cell["arms"]] == [("lora", "doratune"), ("full", None)]
    assert [(one["from"], one["to"]) for one in cell["differences"]] == [("lora", "full")]
    assert record["notes"] == [] and record["settings"]["rank"] == cell["rank"] == 4


@pytest.mark.parametrize("gradient", [False, True])
def test_the_norms_gradient_is_the_engines_option(gradient: bool, cli: Cli, flags: list[object]) -> None:
    from doratune.peft.layer import EngineLayer, EngineOptions
    from doratune.training.adapter import add_adapter
    from doratune.training.config import TrainConfig
    from doratune.training.train import load_base

    config = TrainConfig(
        model=str(flags[1]), method="dora-attached-norm" if gradient else "dora", rank=2, output=Path("run")
    )
    model = add_adapter(load_base(config).model, config)
    options = {module.engine_options for module in model.modules() if isinstance(module, EngineLayer)}
    assert options == {EngineOptions(dropout="peft", detach_norm=not gradient)}


def test_the_norms_gradient_changes_training(cli: Cli, flags: list[object]) -> None:
    runs = {"with": ["--method", "dora-attached-norm"], "without": []}
    for run, more in runs.items():
        outcome = cli("train", *flags, "--dropout", 0, "--learning-rate", "1e-2", *more, "--output", run)
        assert outcome.code == 0, outcome.err
    assert losses(Path("with"))[:2] == losses(Path("without"))[:2], "the same until the first update"
    assert losses(Path("with")) != losses(Path("without"))


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (["--method", "full", "--load-in-4bit"], "--load-in-4bit"),
        (["--method", "full", "--dtype", "float16"], "--dtype"),
        (["--method", "dora-attached-norm", "--engine", "peft"], "--engine"),
    ],
    ids=" ".join,
)
def test_settings_that_a_method_does_not_support(
    cli: Cli, flags: list[object], more: list[str], said: str
) -> None:
    outcome = cli("train", *flags, *more, "--output", "run")
    assert outcome.code == 2 and f"where: {said}" in outcome.err and "Traceback" not in outcome.err
    assert not Path("run").exists()
