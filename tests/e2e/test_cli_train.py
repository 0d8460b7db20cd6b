"""``doratune train`` on a tiny model: the run directory, and what must not change the result."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
import yaml
from cli_support import SMALL, Cli, lines, losses
from safetensors.torch import load_file


@pytest.fixture
def flags(tiny_model: Path) -> list[object]:
    return ["--model", tiny_model, "--task", "sample-boolq", "--rows", "48", *SMALL]


def adapter_weights(run: Path) -> dict[str, torch.Tensor]:
    return load_file(run / "adapter" / "adapter_model.safetensors")


def test_run_directory(dora_run: Path) -> None:
    record = json.loads((dora_run / "record.json").read_text())
    config = yaml.safe_load((dora_run / "config.yaml").read_text())
    metrics = lines(dora_run / "metrics.jsonl")
    assert record["config"] == config
    assert record["method"] == "dora" and record["training"]["steps"] == 4 == len(metrics)
    assert record["data"][0]["rows"] == 2000 and len(record["data"][0]["sha256"]) == 64
    assert record["training"]["final_loss"] == metrics[-1]["loss"]
    assert record["training"]["tokens"] == metrics[-1]["tokens"]
    weights = adapter_weights(dora_run)
    assert record["parameters"]["trainable"] == sum(weight.numel() for weight in weights.values())
    kinds = {name.rsplit(".", 1)[-1] if "magnitude" in name else name.split(".")[-2] for name in weights}
    assert kinds == {"lora_A", "lora_B", "lora_magnitude_vector"}
    assert not list(dora_run.glob("adapter/*.bin"))
    changes = record["training"]["changes"]
    assert changes.keys() == {"A", "B", "m"} and record["training"]["skipped_steps"] == 0
    squares = [weight.double().square() for name, weight in weights.items() if "lora_B" in name]
    expected = (sum(one.sum() for one in squares) / sum(one.numel() for one in squares)).sqrt()
    assert changes["B"]["rms"] == pytest.approx(float(expected), rel=1e-6), "B begins at zero"
    assert changes["B"]["largest"] == pytest.approx(float(max(one.max() for one in squares).sqrt()), rel=1e-6)
    for one in changes.values():
        assert 0 < one["rms"] < one["largest"] < 1 and one["elements"] == one["of"] > 0


def test_the_mix_from_local_files(cli: Cli, tiny_model: Path) -> None:
    """Schemas of the data sets' own; ``tests/unit/data/test_data_mix.py`` holds the rows themselves."""
    Path("originals").mkdir()
    choices = {"text": ["a", "b", "c", "d"], "label": ["A", "B", "C", "D"]}
    asked = {"question": "Why?", "choices": choices, "answerKey": "D"}
    social = {"context": "Al fell.", "question": "Why?", "answerA": "a", "answerB": "b", "answerC": "c"}
    rows = {
        "boolq": {"question": "is it blue", "passage": "", "answer": False},
        "piqa": {"goal": "Cut it", "sol1": "knife", "sol2": "spoon", "label": 0},
        "social_i_qa": {**social, "label": "3"},
        "hellaswag": {"activity_label": "A", "ctx": "B", "endings": choices["text"], "label": "2"},
        "winogrande": {"sentence": "_ left.", "option1": "Ann", "option2": "Bo", "answer": "2"},
        "arc-easy": asked,
        "arc-challenge": {**asked, "question": "How?"},
        "openbookqa": {"question_stem": "Cows eat", "choices": choices, "answerKey": "A"},
    }
    for name, row in rows.items():
        Path(f"originals/{name}.jsonl").write_text(json.dumps(row))
    flags = ["--model", tiny_model, "--task", "commonsense-mix", "--data", "originals", *SMALL]
    outcome = cli("train", *flags, "--warmup-steps", 0, "--output", "run", "--json")
    assert outcome.code == 0, outcome.err
    (data,) = json.loads(outcome.out)["data"]
    assert (data["task"], data["source"], data["rows"]) == ("commonsense-mix", "originals", 8)
    assert data["parts"] == dict.fromkeys(rows, 1)


def test_tokens_are_those_of_the_rows(dora_run: Path) -> None:
    from transformers import AutoTokenizer

    from doratune.data.encode import encode_completions, encode_prompts
    from doratune.training.config import TrainConfig
    from doratune.training.data import load_training_examples

    config = TrainConfig(**yaml.safe_load((dora_run / "config.yaml").read_text()))
    tokenizer = AutoTokenizer.from_pretrained(config.model)
    examples, _ = load_training_examples(config)
    prompts = encode_prompts(tokenizer, [one.prompt for one in examples])
    answers = encode_completions(tokenizer, [one.candidates[one.gold] for one in examples])
    expected = sum(len(prompt) + len(answer) + 1 for prompt, answer in zip(prompts, answers, strict=True))
    assert len(examples) == 32
    assert json.loads((dora_run / "record.json").read_text())["training"]["tokens"] == expected


def test_adapter_loads_in_plain_peft(dora_run: Path, tiny_model: Path) -> None:
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    import doratune

    base = AutoModelForCausalLM.from_pretrained(tiny_model)
    ids = torch.arange(3, 40).reshape(1, -1)
    with torch.no_grad():
        plain = base(ids).logits
        model = PeftModel.from_pretrained(base, dora_run / "adapter").eval()
        stock = model(ids).logits
        doratune.enable(model)
        ours = model(ids).logits
    assert (stock - plain).abs().max() > 1e-3, "training changed nothing"
    torch.testing.assert_close(ours, stock, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("method", ["lora", "dora"])
def test_engine_and_stock_peft_train_alike(cli: Cli, flags: list[object], method: str) -> None:
    for engine in ("doratune", "peft"):
        assert cli("train", "--method", method, "--engine", engine, *flags, "--output", engine).code == 0
    assert losses(Path("doratune")) == pytest.approx(losses(Path("peft")), abs=2e-5)


def test_speedups_change_nothing_but_what_the_record_says_of_them(cli: Cli, flags: list[object]) -> None:
    for switch in ("on", "off"):
        # Dropout would draw other numbers where padding is left out.
        assert cli("train", *flags, "--dropout", 0, "--speedups", switch, "--output", switch).code == 0
    assert losses(Path("on")) == pytest.approx(losses(Path("off")), abs=2e-5)
    on, off = (
        json.loads(Path(switch, "record.json").read_text())["training"]["speedups"]
        for switch in ("on", "off")
    )
    taken = {one["name"]: one["taken"] for one in on}
    assert off == [] and taken["supervised_forward"] == 1 and taken["rms_norm"] == 5
    scores = []
    for switch in ("on", "off"):
        flags = ["--task", "sample-boolq", "--eval-rows", 8, "--speedups", switch, "--overwrite"]
        assert cli("eval", "on", *flags).code == 0
        rows = lines(Path("on", "predictions", "sample-boolq.jsonl"))
        scores.append([score for row in rows for score in row["scores"]])
    assert scores[0] == pytest.approx(scores[1], abs=1e-4)
    (evaluation,) = json.loads(Path("on", "record.json").read_text())["evaluations"]
    assert evaluation["speedups"] == []


def test_a_run_without_speedups_is_evaluated_without(cli: Cli, flags: list[object]) -> None:
    """Also where a file says it: YAML reads off as a boolean."""
    Path("plain.yaml").write_text("speedups: off\n")
    assert cli("train", *flags, "--preset", "plain.yaml", "--output", "run").code == 0
    assert "speedups: 'off'" in Path("run", "config.yaml").read_text()
    assert cli("eval", "run", "--task", "sample-boolq", "--eval-rows", 4).code == 0
    record = json.loads(Path("run", "record.json").read_text())
    assert record["training"]["speedups"] == record["evaluations"][0]["speedups"] == []


def test_batch_of_8_is_two_of_4(cli: Cli, flags: list[object]) -> None:
    for micro in (8, 4):
        outcome = cli(
            "train", *flags, "--dropout", 0, "--micro-batch-size", micro, "--output", f"micro{micro}"
        )
        assert outcome.code == 0, outcome.err
    assert losses(Path("micro8")) == pytest.approx(losses(Path("micro4")), abs=2e-5)


@pytest.mark.parametrize("method", ["lora", "dora", "full"])
def test_a_run_that_diverges_is_not_finished(cli: Cli, flags: list[object], method: str) -> None:
    every = [*flags, "--method", method, "--save-steps", 1, "--keep-checkpoints", 9]
    outcome = cli("train", *every, "--learning-rate", "1e30", "--output", "run")
    assert outcome.code == 1 and "Traceback" not in outcome.err
    assert "training stopped at step" in outcome.err and "sample-boolq" in outcome.err
    assert "next: doratune eval" not in outcome.out
    assert not Path("run/record.json").exists() and not Path("run/adapter").exists()
    assert "NaN" not in Path("run/metrics.jsonl").read_text()
    for folder in Path("run/checkpoints").glob("checkpoint-*"):
        for weight in load_file(next(folder.glob("*model.safetensors"))).values():
            assert weight.isfinite().all()
            assert weight.float().norm().isfinite()


@pytest.mark.parametrize("method", ["lora", "dora"])
def test_resumed_is_uninterrupted(cli: Cli, flags: list[object], method: str) -> None:
    every = [*flags, "--method", method, "--save-steps", 2, "--learning-rate", "5e-3"]
    assert cli("train", *every, "--output", "whole").code == 0
    shutil.copytree("whole", "killed")
    # What a run killed after step 5 leaves: a checkpoint of step 4, a line too many, no adapter, no record.
    (Path("killed") / "record.json").unlink()
    shutil.rmtree("killed/adapter")
    shutil.rmtree("killed/checkpoints/checkpoint-6")
    metrics = Path("killed/metrics.jsonl")
    metrics.write_text("".join(line + "\n" for line in metrics.read_text().splitlines()[:5]))
    outcome = cli("train", *every, "--output", "killed", "--resume")
    assert outcome.code == 0, outcome.err
    assert losses(Path("killed")) == losses(Path("whole"))
    whole, killed = adapter_weights(Path("whole")), adapter_weights(Path("killed"))
    assert whole.keys() == killed.keys()
    for name, weight in whole.items():
        torch.testing.assert_close(killed[name], weight, rtol=0, atol=0)
    records = [json.loads(Path(run, "record.json").read_text()) for run in ("whole", "killed")]
    for figure in ("tokens", "changes"):
        assert records[0]["training"][figure] == records[1]["training"][figure]


def test_resume_refuses_other_settings(cli: Cli, flags: list[object], dora_run: Path) -> None:
    shutil.copytree(dora_run, "run")
    Path("run/record.json").unlink()
    outcome = cli("train", *flags, "--seed", 7, "--output", "run", "--resume")
    assert outcome.code == 2 and "seed: 0 -> 7" in outcome.err


def test_same_seed_same_rows_for_both_methods(cli: Cli, flags: list[object]) -> None:
    for method in ("lora", "dora"):
        assert cli("train", "--method", method, *flags, "--dropout", 0, "--output", method).code == 0
    # B starts at zero, so before the first update both adapters are the base model: equal losses mean equal
    # rows. The warm-up's first step has learning rate 0, so this holds for two steps.
    assert losses(Path("lora"))[:2] == pytest.approx(losses(Path("dora"))[:2], abs=1e-5)


def test_loss_on_prompt_too(cli: Cli, flags: list[object]) -> None:
    assert cli("train", *flags, "--loss-on", "prompt-and-answer", "--output", "all").code == 0
    assert cli("train", *flags, "--output", "answer").code == 0
    assert losses(Path("all"))[0] != pytest.approx(losses(Path("answer"))[0], abs=1e-4)


def test_validation_share_reports_a_loss(cli: Cli, flags: list[object]) -> None:
    assert cli("train", *flags, "--validation-share", 0.25, "--save-steps", 2, "--output", "run").code == 0
    validation = [line for line in lines(Path("run/metrics.jsonl")) if "eval_loss" in line]
    assert [line["step"] for line in validation] == [2, 4, 5], "36 rows in batches of 8, and at the end"


@pytest.mark.parametrize("method", ["lora", "dora"])
def test_gradient_checkpointing_changes_nothing(cli: Cli, flags: list[object], method: str) -> None:
    """To the last bit, dropout's numbers too."""
    every = [*flags, "--method", method, "--dropout", 0.05, "--learning-rate", "1e-2"]
    assert cli("train", *every, "--output", "plain").code == 0
    assert cli("train", *every, "--gradient-checkpointing", "--output", "checkpointed").code == 0
    assert losses(Path("plain")) == losses(Path("checkpointed"))
    checkpointed = adapter_weights(Path("checkpointed"))
    assert all(checkpointed[name].equal(weight) for name, weight in adapter_weights(Path("plain")).items())


def test_long_rows_are_counted_and_refused_or_left_out(cli: Cli, flags: list[object]) -> None:
    outcome = cli("train", *flags, "--cutoff", 10, "--output", "run")
    assert outcome.code == 2 and "48 of 48 rows are longer than the cutoff of 10 tokens" in outcome.err
    assert not Path("run").exists()


def test_overwrite_leaves_foreign_files(cli: Cli, flags: list[object]) -> None:
    assert cli("train", *flags, "--output", "run").code == 0
    Path("run/notes.txt").write_text("mine")
    outcome = cli("train", *flags, "--output", "run")
    assert outcome.code == 2 and "already holds a run" in outcome.err
    assert cli("train", *flags, "--seed", 3, "--output", "run", "--overwrite").code == 0
    assert Path("run/notes.txt").read_text() == "mine"
    assert json.loads(Path("run/record.json").read_text())["seed"] == 3


def test_json_prints_the_record(cli: Cli, flags: list[object]) -> None:
    outcome = cli("train", *flags, "--output", "run", "--json")
    assert json.loads(outcome.out) == json.loads(Path("run/record.json").read_text())


def test_a_checkpoint_that_does_not_match_is_not_resumed(cli: Cli, flags: list[object]) -> None:
    """transformers would load what fits and go on from random values in the rest."""
    from safetensors.torch import save_file

    from doratune.training.checkpoints import seal

    assert cli("train", *flags, "--save-steps", 1, "--output", "run").code == 0
    shutil.rmtree("run/adapter")
    Path("run/record.json").unlink()
    latest = max(Path("run/checkpoints").glob("checkpoint-*"), key=lambda one: int(one.name.split("-")[1]))
    shutil.rmtree(latest)
    latest = max(Path("run/checkpoints").glob("checkpoint-*"), key=lambda one: int(one.name.split("-")[1]))
    path = latest / "adapter_model.safetensors"
    whole = path.read_bytes()
    save_file({key: one for key, one in load_file(path).items() if "layers.1" not in key}, path)
    seal(latest)  # else its checksum would tell
    outcome = cli("train", *flags, "--save-steps", 1, "--output", "run", "--resume")
    assert outcome.code == 2 and "missing" in outcome.err and "layers.1" in outcome.err, outcome.err
    assert "Traceback" not in outcome.err
    path.write_bytes(whole)
    seal(latest)
    outcome = cli("train", *flags, "--save-steps", 1, "--output", "run", "--resume")
    assert outcome.code == 0, outcome.err


def test_a_run_is_not_resumed_on_another_base(cli: Cli, flags: list[object], tiny_model: Path) -> None:
    from safetensors.torch import save_file

    shutil.copytree(tiny_model, "base")
    every = [*flags, "--model", "base", "--save-steps", 2, "--output", "run"]
    assert cli("train", *every).code == 0
    adapter = adapter_weights(Path("run"))
    shutil.rmtree("run/adapter")
    Path("run/record.json").unlink()
    shutil.rmtree("run/checkpoints/checkpoint-6")
    for file in ("config.json", "tokenizer.json", "model.safetensors"):
        path = Path("base") / file
        whole = path.read_bytes()
        if file == "config.json":
            path.write_text(json.dumps({**json.loads(whole), "rms_norm_eps": 0.1}))
        elif file == "tokenizer.json":
            values = json.loads(whole)
            vocabulary = values["model"]["vocab"]
            vocabulary["Ġthe"], vocabulary["Ġis"] = vocabulary["Ġis"], vocabulary["Ġthe"]
            path.write_text(json.dumps(values))
        else:
            tensors = load_file(path)
            tensors["model.layers.1.mlp.up_proj.weight"] *= 1.5
            save_file(tensors, path, metadata={"format": "pt"})
        for more in (["--dry-run"], []):
            outcome = cli("train", *every, "--resume", *more)
            assert outcome.code == 2 and "started with another base model" in outcome.err, (file, outcome.err)
        assert not Path("run/adapter").exists()
        path.write_bytes(whole)
    assert cli("train", *every, "--resume").code == 0
    assert all(one.equal(adapter[name]) for name, one in adapter_weights(Path("run")).items())


def test_a_run_is_not_resumed_on_other_training_data(cli: Cli, tiny_model: Path) -> None:
    rows = [
        {"question": f"Which is number {number}?", "choices": ["one", "two"], "answer": str(number % 2)}
        for number in range(32)
    ]
    row = {"stem": "{question}", "options": "choices", "answer": "answer", "answers": ["0", "1"]}
    task = {"name": "numbers", "layout": "choices", "row": row}
    Path("rows.json").write_text(json.dumps(rows))
    Path("numbers.yaml").write_text(yaml.safe_dump(task))
    every = ["--model", tiny_model, "--task", "numbers.yaml", "--data", "rows.json", *SMALL]
    every += ["--save-steps", 2, "--output", "run"]
    assert cli("train", *every).code == 0
    adapter = adapter_weights(Path("run"))
    shutil.rmtree("run/adapter")
    Path("run/record.json").unlink()
    shutil.rmtree("run/checkpoints/checkpoint-4")
    whole = {name: Path(name).read_bytes() for name in ("rows.json", "numbers.yaml")}
    other_row = {"row": {**row, "stem": "Q: {question}"}}
    changes = {
        "rows.json: other content in its 32 rows": [*rows[:-1], {**rows[-1], "answer": "0"}],
        "rows.json: 32 rows then, 31 now": rows[:-1],
        "rows.json: the task numbers has another layout in its file": {**task, "layout": "solutions"},
        "rows.json: the task numbers has another row in its file": {**task, **other_row},
    }
    for said, changed in changes.items():
        if isinstance(changed, list):
            Path("rows.json").write_text(json.dumps(changed))
        else:
            Path("numbers.yaml").write_text(yaml.safe_dump(changed))
        for more in (["--dry-run"], []):
            outcome = cli("train", *every, "--resume", *more)
            assert outcome.code == 2 and "started with other training data" in outcome.err, outcome.err
            assert said in outcome.err and "Traceback" not in outcome.err
        assert not Path("run/adapter").exists() and len(losses(Path("run"))) == 4
        for name, content in whole.items():
            Path(name).write_bytes(content)
    assert cli("train", *every, "--resume").code == 0
    assert all(one.equal(adapter[name]) for name, one in adapter_weights(Path("run")).items())


def test_a_checkpoint_of_an_older_version_is_resumed_and_it_is_said(cli: Cli, flags: list[object]) -> None:
    from doratune.training.checkpoints import seal

    every = [*flags, "--save-steps", 2, "--output", "run"]
    assert cli("train", *every).code == 0
    Path("run/record.json").unlink()
    shutil.rmtree("run/adapter")
    for name in ("base_model.json", "training_data.json", "method.json"):
        (Path("run/checkpoints/checkpoint-6") / name).unlink()
    seal(Path("run/checkpoints/checkpoint-6"))
    outcome = cli("train", *every, "--resume")
    assert outcome.code == 0
    assert outcome.err.count("checkpoint-6 does not say what its base model was") == 1
    assert outcome.err.count("checkpoint-6 does not say what rows it was trained on") == 1
    assert outcome.err.count("checkpoint-6 does not say what its method was") == 1


def test_bfloat16_on_a_cpu(cli: Cli, flags: list[object]) -> None:
    outcome = cli("train", *flags, "--dropout", 0, "--dtype", "bfloat16", "--output", "run")
    assert outcome.code == 0, outcome.err
    record = json.loads(Path("run/record.json").read_text())
    assert record["model"]["dtype"] == "bfloat16"
    assert {weight.dtype for weight in adapter_weights(Path("run")).values()} == {torch.float32}
    assert cli("train", *flags, "--dropout", 0, "--output", "exact").code == 0
    assert losses(Path("run")) == pytest.approx(
        losses(Path("exact")), abs=0.03
    )  # bfloat16: 8 bits, losses near 6.4
    evaluated = cli("eval", "run", "--task", "sample-boolq", "--eval-rows", 4)
    assert evaluated.code == 0 and "adapter merged into the base" in evaluated.err
    found = json.loads(Path("run/record.json").read_text())
    assert found["model"]["dtype"] == "bfloat16"  # that of training
    scored = found["evaluations"][0]["scored"]
    difference = scored.pop("merge_difference")
    assert scored.pop("weights_checksum") == found["training"]["weights_checksum"]
    assert scored == {"weights": "adapter", "merged": True, "dtype": "float32"} and 0 < difference < 1e-4
    by_name = cli(
        "eval", "run", "--task", "sample-boolq", "--eval-rows", 4, "--dtype", "bfloat16", "--overwrite"
    )
    assert by_name.code == 0 and "kept apart from the base" in by_name.err and "in bfloat16" in by_name.err
    (entry,) = json.loads(Path("run/record.json").read_text())["evaluations"]
    assert entry["scored"]["dtype"] == "bfloat16" and entry["scored"]["merged"] is False


def test_4_bit_base_trains_and_evaluates_in_4_bits(cli: Cli, flags: list[object]) -> None:
    pytest.importorskip("bitsandbytes", reason="needs the extra doratune[bnb]")
    outcome = cli("train", *flags, "--load-in-4bit", "--output", "run")
    assert outcome.code == 0, outcome.err
    assert "10 Linear4bit layers on the engine" in outcome.err
    speedups = json.loads(Path("run", "record.json").read_text())["training"]["speedups"]
    taken = {one["name"] for one in speedups if one["taken"]}
    assert {"supervised_forward", "packing", "attention", "last_mlp", "rms_norm", "rotary"} <= taken
    evaluated = cli("eval", "run", "--task", "sample-boolq", "--eval-rows", 4)
    assert evaluated.code == 0 and "kept apart from the base" in evaluated.err
    assert {weight.dtype for weight in adapter_weights(Path("run")).values()} == {torch.float32}


def test_small_steps_on_a_4_bit_base_are_not_rounded_away(cli: Cli, flags: list[object]) -> None:
    pytest.importorskip("bitsandbytes", reason="needs the extra doratune[bnb]")
    every = [*flags, "--load-in-4bit", "--dropout", 0, "--save-steps", 2]
    outcome = cli("train", *every, "--learning-rate", "1e-5", "--output", "run")
    assert outcome.code == 0, outcome.err
    first, last = (
        load_file(Path("run/checkpoints", f"checkpoint-{step}", "adapter_model.safetensors"))
        for step in (4, 6)
    )
    for name, weight in last.items():
        moved = (weight != first[name]).float().mean()
        assert weight.dtype == torch.float32 and moved > 0.95, name


def test_rows_are_tokenised_once(
    cli: Cli, flags: list[object], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    from doratune.training import tokenise

    monkeypatch.setenv("DORATUNE_CACHE", str(tmp_path / "cache"))
    every = [*flags, "--validation-share", 0.25]
    assert cli("train", *every, "--output", "first").code == 0
    (entry,) = (tmp_path / "cache" / "tokens").iterdir()
    written = {path.name for path in entry.iterdir()}
    monkeypatch.setattr(tokenise, "_encode", None)
    assert cli("train", *every, "--output", "second").code == 0
    assert losses(Path("second")) == losses(Path("first"))
    assert {path.name for path in entry.iterdir()} == written, "training leaves no files of its own in there"
