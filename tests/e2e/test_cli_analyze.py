"""``doratune analyze``: of tiny runs, against weights that PEFT and transformers give; and bad input."""

from __future__ import annotations

import json
import shutil
import xml.etree.ElementTree
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from cli_support import SMALL, Cli, forget_checksum, logging_kept, swap_weights
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

KINDS = ["q_proj", "k_proj", "v_proj", "up_proj", "down_proj"]
METHODS = {
    "full": ["--method", "full", "--learning-rate", "1e-3"],
    "lora": ["--method", "lora"],
    "dora": ["--method", "dora"],
    "attached": ["--method", "dora-attached-norm"],
}


@pytest.fixture(scope="module")
def runs(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a run of each method, six steps and a checkpoint at each."""
    from doratune.cli.main import main

    folder = tmp_path_factory.mktemp("analysed")
    flags = ["--model", str(tiny_model), "--task", "sample-boolq", "--rows", "48", "--learning-rate", "1e-2"]
    with logging_kept():
        for name, method in METHODS.items():
            every = [*flags, *SMALL, "--save-steps", "1", "--keep-checkpoints", "10", *method]
            assert main(["train", *every, "--output", str(folder / name)]) == 0
    return folder


@pytest.fixture(scope="module")
def analysis(runs: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    from doratune.cli.main import main

    output = tmp_path_factory.mktemp("analysis")
    with logging_kept():
        assert main(["analyze", *(str(runs / name) for name in METHODS), "--output", str(output)]) == 0
    return json.loads((output / "analysis.json").read_text(encoding="utf-8"))


def dense_weights(run: Path, step: int, tiny_model: Path) -> dict[str, torch.Tensor]:
    """All weights of a checkpoint, from transformers or merged by stock PEFT."""
    from peft import PeftModel

    checkpoint = run / "checkpoints" / f"checkpoint-{step}"
    if run.name == "full":
        return AutoModelForCausalLM.from_pretrained(checkpoint).double().state_dict()
    base = AutoModelForCausalLM.from_pretrained(tiny_model).double()
    model: Any = PeftModel.from_pretrained(base, checkpoint, autocast_adapter_dtype=False)
    return model.double().merge_and_unload().state_dict()


@pytest.mark.parametrize("name", METHODS)
def test_it_measures_the_weights_that_peft_and_transformers_give(
    name: str, runs: Path, analysis: dict[str, Any], tiny_model: Path
) -> None:
    (run,) = (one for one in analysis["runs"] if one["name"] == name)
    before = AutoModelForCausalLM.from_pretrained(tiny_model).double().state_dict()
    for step in (3, 6):
        after = dense_weights(runs / name, step, tiny_model)
        changes = {one["layer"]: one for one in run["changes"] if one["step"] == step}
        assert len(changes) == 2 * len(KINDS)
        for layer, change in changes.items():
            W, V = before[f"{layer}.weight"], after[f"{layer}.weight"]
            magnitude = (V.norm(dim=1) - W.norm(dim=1)).abs().mean()
            direction = (1 - torch.cosine_similarity(V, W, dim=1)).mean()
            assert change["kind"] == layer.rsplit(".", 1)[1]
            assert change["magnitude"] == pytest.approx(magnitude.item(), rel=1e-4)
            assert change["direction"] == pytest.approx(direction.item(), rel=1e-4)
            assert change["magnitude"] > 1e-5 and change["direction"] > 1e-6, "training moved it"


def test_the_record_is_whole(runs: Path, analysis: dict[str, Any]) -> None:
    assert analysis["reproduce"].startswith("doratune analyze ")
    methods = {run["name"]: run["method"] for run in analysis["runs"]}
    assert methods == {"full": "full", "lora": "lora", "dora": "dora", "attached": "dora-attached-norm"}
    for run in analysis["runs"]:
        assert run["steps"] == [1, 2, 3, 4, 5, 6] and run["run"] == str(runs / run["name"])
        assert sorted({one["kind"] for one in run["changes"]}) == sorted(KINDS)
        assert len(run["changes"]) == 6 * 2 * len(KINDS)
        # The warm-up's first step has learning rate 0.
        assert {one["step"] for one in run["changes"] if one["rounding"]} == {1}
        for found in run["correlations"]:
            chosen = [
                one for one in run["changes"] if found["kind"] in ("all", one["kind"]) and not one["rounding"]
            ]
            x, y = ([one[field] for one in chosen] for field in ("direction", "magnitude"))
            assert found["points"] == len(chosen)
            assert found["correlation"] == pytest.approx(np.corrcoef(x, y)[0, 1], abs=1e-9)
            assert found["slope"] == pytest.approx(np.polyfit(x, y, 1)[0], rel=1e-6)
        assert run["correlations"][0]["kind"] == "all"
        assert bool(run["gains"]) == ("dora" in run["method"])


def test_dora_begins_as_the_base_and_its_gains_drift(
    runs: Path, analysis: dict[str, Any], tiny_model: Path
) -> None:
    """The warm-up's first step has learning rate 0, so the first checkpoint is the adapter as it began."""
    for run in analysis["runs"]:
        first = [one for one in run["changes"] if one["step"] == 1]
        assert max(one["magnitude"] for one in first) < 1e-6
        assert max(one["direction"] for one in first) < 1e-30
        for gain in run["gains"]:
            drifted = gain["deviation"] > 1e-4
            assert drifted == (gain["step"] > 1), gain
            assert gain["step"] > 1 or gain["mean"] == pytest.approx(1, abs=1e-6)
    adapter = load_file(runs / "dora" / "adapter" / "adapter_model.safetensors")
    layer = "model.layers.1.mlp.up_proj"
    A, B = (adapter[f"base_model.model.{layer}.lora_{part}.weight"].double() for part in "AB")
    m = adapter[f"base_model.model.{layer}.lora_magnitude_vector"].double()
    W = load_file(tiny_model / "model.safetensors")[f"{layer}.weight"].double()
    g = m / (W + 64 / 4 * B @ A).norm(dim=1)
    (run,) = (one for one in analysis["runs"] if one["name"] == "dora")
    (gain,) = (one for one in run["gains"] if (one["layer"], one["step"]) == (layer, 6))
    assert gain["mean"] == pytest.approx(g.mean().item(), rel=1e-6)
    assert gain["deviation"] == pytest.approx((g - 1).square().mean().sqrt().item(), rel=1e-4)


def test_small_parts_give_the_same_analysis(
    cli: Cli, runs: Path, analysis: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("doratune.analysis.analyze.PART_ELEMENTS", 64 * 7)
    outcome = cli("analyze", runs / "full", runs / "dora", "--output", "analysis", "--json")
    assert outcome.code == 0, outcome.err
    by_name = {run["name"]: run for run in analysis["runs"]}
    for run in json.loads(outcome.out)["runs"]:
        for one, whole in zip(run["changes"], by_name[run["name"]]["changes"], strict=True):
            assert one["layer"] == whole["layer"] and one["step"] == whole["step"]
            assert one["magnitude"] == pytest.approx(whole["magnitude"], rel=1e-9)
            assert one["direction"] == pytest.approx(whole["direction"], rel=1e-9)


def test_full_runs_are_analysed_in_the_layers_that_adapters_have(
    cli: Cli, runs: Path, tiny_model: Path
) -> None:
    flags = ["--model", tiny_model, "--task", "sample-boolq", "--rows", 48, *SMALL, "--save-steps", 2]
    assert cli("train", "--method", "lora", *flags, "--targets", "o_proj", "--output", "narrow").code == 0
    outcome = cli("analyze", "narrow", runs / "full", "--output", "analysis", "--json")
    assert outcome.code == 0, outcome.err
    for run in json.loads(outcome.out)["runs"]:
        assert {change["kind"] for change in run["changes"]} == {"o_proj"}


def test_the_table_and_the_plot(cli: Cli, runs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    outcome = cli("analyze", *(runs / name for name in METHODS), "--output", "analysis")
    assert outcome.code == 0, outcome.err
    told = " ".join(outcome.out.split())  # where a line ends depends on the length of a path
    for words in ("−0.62", "+0.83", "−0.31", "VL-BART", "10 weights", "6 checkpoints", "g = m"):
        assert words in told
    assert all(len(line) <= 80 for line in outcome.out.splitlines() if not line.startswith("written"))
    drawn = xml.etree.ElementTree.parse("analysis/analysis.svg").getroot()
    assert drawn.tag == "{http://www.w3.org/2000/svg}svg"


def test_a_bfloat16_base_is_rounded_as_in_training(cli: Cli, tiny_model: Path) -> None:
    """Its rounding is no movement: before the first update there is none at all."""
    flags = ["--model", tiny_model, "--task", "sample-boolq", "--rows", 16, *SMALL, "--dtype", "bfloat16"]
    for method in ("lora", "dora"):
        assert cli("train", *flags, "--method", method, "--save-steps", 1, "--output", method).code == 0
    outcome = cli("analyze", "lora", "dora", "--output", "analysis", "--json")
    assert outcome.code == 0, outcome.err
    for run in json.loads(outcome.out)["runs"]:
        assert run["steps"] == [1, 2]
        assert max(one["magnitude"] for one in run["changes"] if one["step"] == 1) < 1e-6
        assert max(one["direction"] for one in run["changes"]) > 1e-9


def test_embeddings_are_left_out_and_said(cli: Cli, tiny_model: Path) -> None:
    flags = ["--model", tiny_model, "--task", "sample-boolq", "--rows", 16, *SMALL, "--save-steps", 1]
    for name, targets in (("both", ["embed_tokens", "q_proj"]), ("embeddings", ["embed_tokens"])):
        assert cli("train", *flags, "--targets", *targets, "--output", name).code == 0
    outcome = cli("analyze", "both", "--output", "analysis", "--json")
    assert (
        outcome.code == 0
        and "left out, since only linear layers are analysed: model.embed_tokens" in outcome.err
    )
    (run,) = json.loads(outcome.out)["runs"]
    assert {change["kind"] for change in run["changes"]} == {"q_proj"}
    outcome = cli("analyze", "embeddings", "--output", "other")
    assert outcome.code == 2 and "model.embed_tokens" in outcome.err and "Traceback" not in outcome.err


def test_a_run_that_learned_nothing_has_no_correlation(cli: Cli, tiny_model: Path) -> None:
    flags = ["--model", tiny_model, "--task", "sample-boolq", "--rows", 32, *SMALL, "--save-steps", 1]
    for method in ("lora", "dora"):
        rate = ["--learning-rate", "1e-12", "--method", method, "--output", method]
        assert cli("train", *flags, *rate).code == 0
    outcome = cli("analyze", "lora", "dora", "--output", "analysis")
    assert outcome.code == 0, outcome.err
    for run in json.loads(Path("analysis/analysis.json").read_text())["runs"]:
        assert all(one["correlation"] is None for one in run["correlations"])
        assert all(change["rounding"] for change in run["changes"])
    assert "moved by no more than rounding" in " ".join(outcome.out.split())


def test_full_weights_that_are_not_finite_are_one_error(cli: Cli, runs: Path) -> None:
    from safetensors.torch import save_file

    shutil.copytree(runs / "full", "full")
    forget_checksum(Path("full"))
    path = Path("full/model/model.safetensors")
    weights = load_file(path)
    weights["model.layers.1.self_attn.v_proj.weight"][3, 5] = float("nan")
    save_file(weights, path, metadata={"format": "pt"})
    outcome = cli("analyze", "full", "--output", "analysis")
    assert outcome.code == 2 and "layers.1.self_attn.v_proj" in outcome.err, outcome.err
    assert "Traceback" not in outcome.err


def _without_checkpoints(run: Path) -> None:
    shutil.rmtree(run / "checkpoints")


def _unfinished(run: Path) -> None:
    (run / "record.json").unlink()


def _changed_record(**changes: Any) -> Callable[[Path], None]:
    def change(run: Path) -> None:
        path = run / "record.json"
        record = json.loads(path.read_text())
        for part, values in changes.items():
            record[part].update(values)
        path.write_text(json.dumps(record))

    return change


def _foreign_parameter(run: Path) -> None:
    from safetensors.torch import save_file

    path = run / "adapter" / "adapter_model.safetensors"
    save_file({**load_file(path), "base_model.model.lm_head.weight": torch.ones(2, 2)}, path)


def _changed_tensors(change: Callable[[dict[str, Any]], dict[str, Any]]) -> Callable[[Path], None]:
    def spoil(run: Path) -> None:
        from safetensors.torch import save_file

        path = run / "adapter" / "adapter_model.safetensors"
        save_file(change(load_file(path)), path)

    return spoil


_without_a_layer = _changed_tensors(
    lambda tensors: {key: one for key, one in tensors.items() if "layers.1" not in key}
)
_not_finite = _changed_tensors(
    lambda tensors: {key: one.log() if "layers.1" in key else one for key, one in tensors.items()}
)


def _other_targets(run: Path) -> None:
    path = run / "adapter" / "adapter_config.json"
    config = json.loads(path.read_text())
    path.write_text(json.dumps({**config, "target_modules": ["q_proj"]}))


def _in_an_older_run(spoil: Callable[[Path], None]) -> Callable[[Path], None]:
    """Spoil the weights of a run whose record has no checksum of them, so that they are read."""

    def change(run: Path) -> None:
        forget_checksum(run)
        spoil(run)

    return change


BAD: dict[str, tuple[Callable[[Path], None], str]] = {
    "no checkpoints": (_without_checkpoints, "no checkpoints"),
    "an unfinished run": (_unfinished, "the run is not finished"),
    "a missing folder": (shutil.rmtree, "no such run directory"),
    "another base": (
        _changed_record(model={"name": "other", "fingerprint": "0" * 16}),
        "different base models",
    ),
    "a quantised base": (_changed_record(config={"load_in_4bit": True}), "quantised"),
    "a damaged adapter": (
        lambda run: (run / "adapter/adapter_model.safetensors").write_bytes(b""),
        "cannot be",
    ),
    "other weights": (
        lambda run: swap_weights(run / "adapter/adapter_model.safetensors"),
        "not those that its training left",
    ),
    "other weights in a checkpoint": (
        lambda run: swap_weights(run / "checkpoints/checkpoint-2/adapter_model.safetensors"),
        "adapter_model.safetensors has changed",
    ),
    "an adapter with a layer less": (_in_an_older_run(_without_a_layer), "missing"),
    "an adapter that is not finite": (_in_an_older_run(_not_finite), "not finite"),
    "an adapter of another configuration": (_other_targets, "other settings than its run"),
    "a missing adapter": (lambda run: shutil.rmtree(run / "adapter"), "weights are not there"),
    "an adapter of more": (_in_an_older_run(_foreign_parameter), "lm_head"),
}


@pytest.mark.parametrize("what", BAD)
def test_bad_runs_are_one_error(what: str, cli: Cli, runs: Path) -> None:
    spoil, said = BAD[what]
    shutil.copytree(runs / "dora", "dora")
    spoil(Path("dora"))
    outcome = cli("analyze", runs / "lora", "dora", "--output", "analysis")
    assert outcome.code == 2 and said in outcome.err and "Traceback" not in outcome.err, outcome.err
    assert not Path("analysis").exists()


def test_runs_that_cannot_be_analysed_are_refused(cli: Cli, runs: Path, tiny_model: Path) -> None:
    assert cli("eval", tiny_model, "--task", "sample-boolq", "--eval-rows", 4, "--output", "base").code == 0
    outcome = cli("analyze", "base", "--output", "analysis")
    assert outcome.code == 2 and "nothing was trained" in outcome.err
    outcome = cli("analyze", runs / "lora", runs / "lora", "--output", "analysis")
    assert outcome.code == 2 and "given twice" in outcome.err


def test_a_base_that_is_not_the_one_trained_from_is_refused(cli: Cli, tiny_model: Path, runs: Path) -> None:
    shutil.copytree(tiny_model, "model")
    flags = ["--model", "model", "--task", "sample-boolq", "--rows", 16, *SMALL]
    assert cli("train", "--method", "lora", *flags, "--output", "lora").code == 0
    weights = load_file("model/model.safetensors")
    from safetensors.torch import save_file

    weights["model.norm.weight"] += 1
    save_file(weights, "model/model.safetensors", metadata={"format": "pt"})
    outcome = cli("analyze", "lora", "--output", "analysis")
    assert outcome.code == 2 and "not the one that the run was trained from" in outcome.err
    shutil.rmtree("model")
    outcome = cli("analyze", "lora", "--output", "analysis")
    assert outcome.code == 2 and "is not there" in outcome.err
