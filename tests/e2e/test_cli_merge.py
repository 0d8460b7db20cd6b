"""``doratune merge`` of runs, in 4 bits and fully fine-tuned ones too, and its refusals."""

from __future__ import annotations

import json
import os
import shutil
import signal
import time
from pathlib import Path

import pytest
import torch
from cli_support import SMALL, Cli, forget_checksum
from peft import PeftModel
from quick_start import python, start
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from doratune.evaluation.config import EvalConfig
from doratune.evaluation.found import find_trained
from doratune.evaluation.target import load_target
from doratune.peft.quantised import dequantised


def test_a_run_is_merged_and_said_so(cli: Cli, dora_run: Path) -> None:
    outcome = cli("merge", dora_run, "--output", "merged")
    assert outcome.code == 0, outcome.err
    first, *others = outcome.out.splitlines()
    assert first.strip().startswith("merged onto ") and "6 rows" in outcome.out
    assert any("merged, from base and adapter" in line and "100.00 %" in line for line in others)
    assert all(len(line) <= 80 for line in (first, *others) if not line.startswith("written: "))
    record, run = (
        json.loads(path.read_text()) for path in (Path("merged/merge.json"), dora_run / "record.json")
    )
    card = Path("merged/README.md").read_text()
    facts = [run["data"][0]["sha256"], run["model"]["fingerprint"], run["training"]["weights_checksum"]]
    assert all(fact in card for fact in facts) and "`rank` | 4" in card
    assert record["weights_checksum"] == run["training"]["weights_checksum"]
    target = EvalConfig(target=str(dora_run), task=[], dtype="float32", speedups="off")
    evaluated = load_target(target, find_trained(str(dora_run)))
    assert evaluated.scored.merged
    ids = torch.arange(5, 45)[None]
    wanted, found = (
        model(ids).logits for model in (evaluated.model, AutoModelForCausalLM.from_pretrained("merged"))
    )
    assert (wanted - found).abs().max() < 1e-5 * wanted.abs().max()
    names = {path.name for path in Path("merged").iterdir()}
    assert {"config.json", "generation_config.json", "tokenizer.json", "model.safetensors"} <= names
    again = cli("merge", dora_run, "--output", "merged")
    assert again.code == 2 and "not empty" in again.err


def test_rows_of_a_file_and_json(cli: Cli, dora_run: Path) -> None:
    Path("rows.txt").write_text("true or false?\nyes or no?\n")
    outcome = cli("merge", dora_run, "--output", "merged", "--check-data", "rows.txt", "--json")
    assert outcome.code == 0, outcome.err
    record = json.loads(outcome.out)
    assert record == json.loads(Path("merged/merge.json").read_text()) and record["check"]["rows"] == 2


def test_a_run_in_4_bits_goes_onto_the_base_that_is_named(cli: Cli, tiny_model: Path) -> None:
    pytest.importorskip("bitsandbytes", reason="needs the extra doratune[bnb]")
    small = [flag for flag in SMALL if flag not in ("--dtype", "float32")]
    flags = ["--model", tiny_model, "--task", "sample-boolq", "--rows", 16, *small, "--dtype", "bfloat16"]
    trained = cli("train", *flags, "--learning-rate", "1e-2", "--load-in-4bit", "--output", "run")
    assert trained.code == 0, trained.err
    outcome = cli("merge", "run", "--output", "merged")
    assert outcome.code == 2 and not Path("merged").exists()
    assert f"--base {tiny_model}" in outcome.err and "--dequantised" in outcome.err

    assert cli("merge", "run", "--output", "full", "--base", tiny_model).code == 0
    assert cli("merge", "run", "--output", "seen", "--dequantised").code == 0
    full, seen = (json.loads(Path(name, "merge.json").read_text()) for name in ("full", "seen"))
    assert full["base_difference"] == pytest.approx(seen["base_difference"], rel=0.2)
    assert full["base_difference"]["mean"] > 10 * full["check"]["mean"]
    assert (full["dtype"], seen["dtype"]) == ("float32", "bfloat16")

    target = EvalConfig(target="run", task=[], speedups="off")
    packed = load_target(target, find_trained("run")).model
    layers = {
        name.removeprefix("base_model.model."): layer
        for name, layer in packed.named_modules()
        if type(layer).__name__ == "Linear4bit"
    }
    before, written = load_file(tiny_model / "model.safetensors"), load_file("seen/model.safetensors")
    unadapted = [name for name in layers if not name.endswith(".base_layer")]
    assert unadapted
    for name in unadapted:
        assert written[f"{name}.weight"].equal(dequantised(layers[name]).bfloat16())
        assert load_file("full/model.safetensors")[f"{name}.weight"].equal(before[f"{name}.weight"])

    refused = cli("convert", "run", "--rank", 8, "--output", "lora")
    assert refused.code == 2 and not Path("lora").exists()
    assert f"add --base {tiny_model}" in refused.err and "--dequantised" not in refused.err
    converted = cli("convert", "run", "--rank", 64, "--base", tiny_model, "--output", "lora", "--json")
    assert converted.code == 0, converted.err
    assert any("trained in 4 bits" in note for note in json.loads(converted.out)["notes"])
    merged, lora = (
        AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32) for folder in ("full", tiny_model)
    )
    ids = torch.arange(5, 45)[None]
    wanted, found = merged(ids).logits, PeftModel.from_pretrained(lora, "lora")(ids).logits
    assert (wanted - found).abs().max() < 1e-3 * wanted.abs().max()


def test_the_dequantised_base_is_one_of_runs_in_4_bits(cli: Cli, dora_run: Path) -> None:
    outcome = cli("merge", dora_run, "--output", "merged", "--dequantised")
    assert outcome.code == 2 and "trained in 4 bits" in outcome.err


def test_what_cannot_be_merged_is_refused_before_anything_is_written(
    cli: Cli, dora_run: Path, tiny_model: Path
) -> None:
    flags = ["--model", tiny_model, "--task", "sample-boolq", "--rows", 16, *SMALL]
    assert cli("train", "--method", "full", *flags, "--output", "full").code == 0
    spoilt = Path(shutil.copytree(dora_run, "spoilt"))
    forget_checksum(spoilt)
    (spoilt / "adapter/adapter_model.safetensors").write_bytes(b"")
    Path("empty").mkdir()
    Path("file").write_text("x")
    before = sorted(path.name for path in Path().iterdir())
    for arguments, said in {
        (dora_run, "full"): "several runs",
        (dora_run, "--weights", "1"): "several runs",
        ("full",): "full/model",
        ("empty",): "no run and no adapter",
        ("nowhere",): "no run and no adapter",
        (spoilt,): "cannot be read",
        (dora_run, "--base", "empty"): "no config.json",
        (dora_run, "--check-data", "none.txt"): "missing",
        (dora_run, "--output", "file"): "is a file",
    }.items():
        outcome = cli("merge", *arguments, *([] if "--output" in arguments else ["--output", "new/merged"]))
        assert outcome.code == 2 and said in outcome.err and "Traceback" not in outcome.err, outcome.err
        assert sorted(path.name for path in Path().iterdir()) == before


def writing_waits() -> None:
    """Have a merge say that it is about to write, and wait."""
    from doratune.serving.merging import merge

    def wait(*_: object, **__: object) -> None:
        print("writing", flush=True)
        time.sleep(60)

    merge.write_settings = wait


@pytest.mark.slow
@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_nothing_is_left_of_an_interrupted_merge(
    number: int, code: int, dora_run: Path, tmp_path: Path
) -> None:
    here, out, err = tmp_path / "here", tmp_path / "out", tmp_path / "err"
    here.mkdir()
    out.touch()
    command = ["-m", "doratune", "merge", str(dora_run), "--output", "new/merged"]
    one = start(python, command, here, None, writing_waits, out=out, err=err)
    deadline = time.monotonic() + 60
    while out.read_text() != "writing\n":
        assert one.exitcode is None and time.monotonic() < deadline, err.read_text()
        time.sleep(0.02)
    assert one.pid is not None
    os.kill(one.pid, number)
    one.join(60)
    assert one.exitcode == code and "Traceback" not in err.read_text()
    assert list(here.iterdir()) == []
