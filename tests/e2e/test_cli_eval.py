"""``doratune eval`` on a tiny model."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from cli_support import SMALL, Cli, forget_checksum, lines, swap_weights
from safetensors.torch import load_file, save_file


@pytest.fixture
def run(dora_run: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(dora_run, tmp_path / "run"))


def test_run_is_evaluated_in_its_own_format(cli: Cli, run: Path) -> None:
    outcome = cli("eval", run, "--task", "sample-boolq", "--eval-rows", 30)
    assert outcome.code == 0, outcome.err
    record = json.loads((run / "record.json").read_text())
    (evaluation,) = record["evaluations"]
    predictions = lines(run / "predictions" / "sample-boolq.jsonl")
    assert evaluation["format"] == "instruct" and evaluation["protocol"] == "likelihood"
    assert evaluation["rows"] == 30 == len(predictions) and evaluation["limit"] == 30
    assert evaluation["correct"] == sum(one["correct"] for one in predictions)
    for one in predictions:
        best = max(range(2), key=lambda index: one["scores"][index])
        assert one["prediction"] == ("true", "false")[best]
        assert one["correct"] is (one["prediction"] == one["answer"])


def test_batches_do_not_change_the_scores(cli: Cli, run: Path) -> None:
    for size in (1, 16):
        flags = ["--eval-rows", 20, "--eval-batch-size", size, "--output", f"batch{size}"]
        assert cli("eval", run, "--task", "sample-winogrande", *flags).code == 0
    ones, sixteens = (lines(Path(f"batch{size}/predictions/sample-winogrande.jsonl")) for size in (1, 16))
    for one, other in zip(ones, sixteens, strict=True):
        assert one["scores"] == pytest.approx(other["scores"], abs=1e-4)


def test_merged_is_unmerged(run: Path) -> None:
    """The evaluation merges a float32 adapter; PEFT's own forward, unmerged, must score the same."""
    from peft import AutoPeftModelForCausalLM

    from doratune.data.examples import build_examples
    from doratune.data.source import load_split
    from doratune.data.tasks import get_task
    from doratune.evaluation.config import EvalConfig
    from doratune.evaluation.found import find_trained
    from doratune.evaluation.likelihood import score_candidates
    from doratune.evaluation.target import load_target

    task = get_task("sample-boolq")
    data = load_split(task, "test")
    examples = build_examples(data.rows[:12], source=data.source, fmt="instruct", task=task)
    target = load_target(EvalConfig(target=str(run), task=["sample-boolq"]), find_trained(str(run)))
    unmerged = AutoPeftModelForCausalLM.from_pretrained(run / "adapter")
    ours, theirs = (
        score_candidates(model, target.tokenizer, examples, batch_size=4)
        for model in (target.model, unmerged)
    )
    for one, other in zip(ours, theirs, strict=True):
        assert one.raw == pytest.approx(other.raw, abs=1e-4)


def test_protocols_and_formats_stand_side_by_side(cli: Cli, run: Path) -> None:
    assert cli("eval", run, "--task", "sample-boolq", "--eval-rows", 6).code == 0
    assert cli("eval", run, "--task", "sample-boolq", "--eval-rows", 6, "--protocol", "generate").code == 0
    assert cli("eval", run, "--task", "sample-boolq", "--eval-rows", 6, "--format", "continuation").code == 0
    record = json.loads((run / "record.json").read_text())
    assert sorted(one["predictions"] for one in record["evaluations"]) == [
        "predictions/sample-boolq.continuation.jsonl",
        "predictions/sample-boolq.generate.jsonl",
        "predictions/sample-boolq.jsonl",
    ]
    generated = lines(run / "predictions/sample-boolq.generate.jsonl")
    (entry,) = (one for one in record["evaluations"] if one["protocol"] == "generate")
    assert entry["unmatched"] == sum(one["prediction"] is None for one in generated)


def test_repeating_is_refused_without_overwrite(cli: Cli, run: Path) -> None:
    assert cli("eval", run, "--task", "sample-boolq", "--eval-rows", 4).code == 0
    before = (run / "record.json").read_text()
    outcome = cli("eval", run, "--task", "sample-boolq", "--eval-rows", 5)
    assert outcome.code == 2 and "already exist" in outcome.err
    assert (run / "record.json").read_text() == before
    assert cli("eval", run, "--task", "sample-boolq", "--eval-rows", 5, "--overwrite").code == 0
    (evaluation,) = json.loads((run / "record.json").read_text())["evaluations"]
    assert evaluation["rows"] == 5


def test_base_model_and_file(cli: Cli, tiny_model: Path, boolq_rows: Path) -> None:
    outcome = cli("eval", tiny_model, "--task", "boolq", "--data", boolq_rows, "--output", "base", "--json")
    assert outcome.code == 0, outcome.err
    record = json.loads(outcome.out)
    assert record == json.loads(Path("base/record.json").read_text())
    assert (
        record["method"] == "base" and record["training"] is None and record["evaluations"][0]["rows"] == 24
    )


def test_plain_adapter_folder(cli: Cli, run: Path) -> None:
    shutil.copytree(run / "adapter", "plain_adapter")
    assert cli("eval", run, "--task", "sample-boolq", "--eval-rows", 8).code == 0
    rest = ["--eval-rows", 8, "--dtype", "float32", "--output", "plain"]
    assert cli("eval", "plain_adapter", "--task", "sample-boolq", *rest).code == 0
    name = "predictions/sample-boolq.jsonl"
    assert lines(Path("plain", name)) == lines(run / name)
    trained, plain = (
        json.loads(path.read_text()) for path in (run / "record.json", Path("plain/record.json"))
    )
    assert plain["method"] == "dora" and plain["parameters"] == trained["parameters"]


def other_base(tiny_model: Path, kind: str) -> None:
    """A model in the folder ``other``: of the same norms but noisy matrices, or with 8 more tokens."""
    import torch
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(tiny_model)
    torch.manual_seed(0)
    if kind == "vocabulary":
        model.resize_token_embeddings(608)
    else:
        with torch.no_grad():
            for weight in model.parameters():
                if weight.ndim == 2:
                    weight.add_(0.02 * torch.randn_like(weight))
    shutil.copytree(tiny_model, "other")
    model.save_pretrained("other")


@pytest.mark.parametrize("kind", ["noise", "vocabulary"])
def test_another_base_is_refused_or_recorded(cli: Cli, run: Path, tiny_model: Path, kind: str) -> None:
    from doratune.models.fingerprint import fingerprint
    from doratune.models.load import load_model

    other_base(tiny_model, kind)
    flags = ["--task", "sample-boolq", "--eval-rows", 4, "--model", "other"]
    before = (run / "record.json").read_bytes()
    outcome = cli("eval", run, *flags)
    assert outcome.code == 2 and "trained for another base model" in outcome.err
    assert "--allow-other-base" in outcome.err
    assert not (run / "predictions").exists() and (run / "record.json").read_bytes() == before
    outcome = cli("eval", run, *flags, "--allow-other-base")
    assert outcome.code == 0 and "trained for another base model" in outcome.err
    assert "on the base other" in outcome.out
    record = json.loads((run / "record.json").read_text())
    base = record["evaluations"][0]["other_base"]
    assert record["model"] == json.loads(before)["model"]
    assert (base["name"], base["source"]) == ("other", "folder other")
    assert base["fingerprint"] == fingerprint(load_model("other", dtype="float32"))
    outcome = cli("report", run, "--output", "report")
    assert outcome.code == 2 and "evaluated on another base model" in outcome.err


def other_config(folder: Path) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "rms_norm_eps": 0.1}))


def other_tokenizer(folder: Path) -> None:
    path = folder / "tokenizer.json"
    values = json.loads(path.read_text())
    vocabulary = values["model"]["vocab"]
    vocabulary["Ġthe"], vocabulary["Ġis"] = vocabulary["Ġis"], vocabulary["Ġthe"]
    path.write_text(json.dumps(values))


SAME_WEIGHTS = {
    "configuration": (other_config, "rms_norm_eps is 1e-06 in the run and 0.1 here"),
    "tokenizer": (other_tokenizer, "'Below is an instruction that d…' is "),
}


@pytest.mark.parametrize("what", SAME_WEIGHTS)
@pytest.mark.parametrize("target", ["run", "plain"])
def test_another_base_over_the_same_weights_is_refused_or_recorded(
    cli: Cli, run: Path, tiny_model: Path, target: str, what: str
) -> None:
    """Of a run, and of an adapter's folder that was copied out of it."""
    change, said = SAME_WEIGHTS[what]
    shutil.copytree(tiny_model, "other")
    change(Path("other"))
    shutil.copytree(run / "adapter", "plain")
    flags = ["--task", "sample-boolq", "--eval-rows", 4, "--model", "other", "--output", "out"]
    outcome = cli("eval", target, *flags)
    assert outcome.code == 2 and said in outcome.err, outcome.err
    assert "--allow-other-base" in outcome.err and "Traceback" not in outcome.err
    assert not Path("out").exists()
    outcome = cli("eval", target, *flags, "--allow-other-base")
    assert outcome.code == 0 and "trained for another base model" in outcome.err, outcome.err
    record = json.loads(Path("out/record.json").read_text())
    other, trained_on = record["evaluations"][0]["other_base"], record["model"]
    assert (other["name"], trained_on["name"]) == ("other", str(tiny_model))
    assert other["fingerprint"] == trained_on["fingerprint"]
    differ = [key for key in ("config", "tokenizer") if other[key] != trained_on[key]]
    assert differ == [{"configuration": "config"}.get(what, what)]


def test_a_base_changed_in_its_folder_is_refused(cli: Cli, tiny_model: Path, dora_run: Path) -> None:
    shutil.copytree(tiny_model, "base")
    shutil.copytree(dora_run, "run")
    path = Path("run/record.json")
    record = json.loads(path.read_text())
    record["model"]["name"] = record["config"]["model"] = "base"
    path.write_text(json.dumps(record))
    flags = ["--task", "sample-boolq", "--eval-rows", 4]
    assert cli("eval", "run", *flags).code == 0
    other_config(Path("base"))
    for command in (["eval", "run", *flags, "--overwrite"], ["analyze", "run"]):
        outcome = cli(*command, "--output", "out")
        assert outcome.code == 2 and "rms_norm_eps is 1e-06 in the run and 0.1 here" in outcome.err


def test_a_run_of_an_older_version_is_evaluated_with_a_warning(cli: Cli, run: Path) -> None:
    path = run / "record.json"
    record = json.loads(path.read_text())
    del record["model"]["config"], record["model"]["tokenizer"]
    path.write_text(json.dumps(record))
    outcome = cli("eval", run, "--task", "sample-boolq", "--eval-rows", 4)
    assert outcome.code == 0 and "configurations and tokenizers were not compared" in outcome.err


def test_an_adapter_of_plain_peft_knows_its_base_by_name_only(cli: Cli, run: Path, tiny_model: Path) -> None:
    shutil.copytree(tiny_model, "copy")
    shutil.copytree(run / "adapter", "plain")
    Path("plain/base_model.json").unlink()
    flags = ["--task", "sample-boolq", "--eval-rows", 4, "--output"]
    outcome = cli("eval", "plain", *flags, "named")
    assert outcome.code == 0 and "not compared" not in outcome.err
    outcome = cli("eval", "plain", *flags, "other", "--model", "copy")
    assert outcome.code == 0 and "so copy was not compared with it" in outcome.err


def test_a_key_twice_in_an_adapters_configuration_is_refused(cli: Cli, run: Path) -> None:
    path = run / "adapter/adapter_config.json"
    path.write_text(path.read_text().rstrip().removesuffix("}") + ', "r": 4}')
    outcome = cli("eval", run, "--task", "sample-boolq", "--eval-rows", 4)
    assert outcome.code == 2 and "repeats a key" in outcome.err and "'r'" in outcome.err


def test_a_folder_holds_evaluations_of_one_thing(cli: Cli, run: Path, tiny_model: Path) -> None:
    other_base(tiny_model, "noise")
    shutil.copytree(run / "adapter", "plain")
    first, second = (["--task", f"sample-{task}", "--eval-rows", 2] for task in ("boolq", "winogrande"))
    targets = {"base": tiny_model, "other": "other", "run": run, "plain": "plain"}
    for name, target in targets.items():
        assert cli("eval", target, *first, "--dtype", "float32", "--output", f"of-{name}").code == 0
    for folder in targets:
        for name, target in targets.items():
            outcome = cli("eval", target, *second, "--overwrite", "--output", f"of-{folder}")
            assert outcome.code == (0 if name == folder else 2), (folder, name, outcome.err)
            assert name == folder or "evaluations of something else" in outcome.err


def test_the_same_base_under_another_name_is_accepted(cli: Cli, run: Path, tiny_model: Path) -> None:
    shutil.copytree(tiny_model, "copy")
    assert cli("eval", run, "--task", "sample-boolq", "--eval-rows", 4, "--model", "copy").code == 0
    assert json.loads((run / "record.json").read_text())["evaluations"][0]["other_base"] is None


def test_unfinished_run_is_refused(cli: Cli, run: Path) -> None:
    (run / "record.json").unlink()
    outcome = cli("eval", run, "--task", "sample-boolq")
    assert outcome.code == 2 and "not finished" in outcome.err and "--resume" in outcome.err


def test_a_missing_target_is_refused_before_its_rows_are_sought(cli: Cli) -> None:
    outcome = cli("eval", "./nowhere", "--task", "boolq")  # rows from the hub, which is out of reach
    assert outcome.code == 2
    assert "no such run, adapter or model folder" in outcome.err and "./nowhere" in outcome.err
    assert "the hub" not in outcome.err and "Traceback" not in outcome.err


def test_a_damaged_adapter_is_not_scored(cli: Cli, dora_run: Path) -> None:
    """In a run, and as a folder of its own."""
    shutil.copytree(dora_run, "run")
    path = Path("run/adapter/adapter_config.json")
    config = json.loads(path.read_text())
    path.write_text(json.dumps({**config, "layers_to_transform": [1]}))
    for target in ("run", "run/adapter"):
        outcome = cli("eval", target, "--task", "sample-boolq", "--eval-rows", 4, "--output", "out")
        assert outcome.code == 2 and "layers_to_transform [1]" in outcome.err, outcome.err
        assert "Traceback" not in outcome.err and "warns" not in outcome.err and not Path("out").exists()


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"lora_alpha": 1}, "lora_alpha 1"),
        ({"use_rslora": True}, "use_rslora True"),
        ({"alpha_pattern": {"q_proj": 3}}, "alpha_pattern"),
        ({"init_lora_weights": "olora"}, "init_lora_weights olora"),  # changes the base when it is loaded
    ],
)
def test_an_adapter_with_another_scale_than_its_run_is_refused(
    cli: Cli, dora_run: Path, changed: dict[str, Any], said: str
) -> None:
    """Every tensor is in its place then, and the scores are others."""
    shutil.copytree(dora_run, "run")
    path = Path("run/adapter/adapter_config.json")
    path.write_text(json.dumps({**json.loads(path.read_text()), **changed}))
    for command in (["eval", "run", "--task", "sample-boolq"], ["analyze", "run"]):
        outcome = cli(*command, "--output", "out")
        assert outcome.code == 2 and said in outcome.err and "other settings" in outcome.err, outcome.err
        assert not Path("out").exists()


@pytest.mark.filterwarnings("default:The following .*_pattern keys")
def test_patterns_that_match_no_layer_are_reported(cli: Cli, dora_run: Path) -> None:
    """PEFT passes over them, and warns; every tensor is in its place."""
    shutil.copytree(dora_run / "adapter", "plain")
    path = Path("plain/adapter_config.json")
    patterns = {"alpha_pattern": {"layers.7.q_proj": 3}, "rank_pattern": {"q_prj": 8}}
    path.write_text(json.dumps({**json.loads(path.read_text()), **patterns}))
    outcome = cli("eval", "plain", "--task", "sample-boolq", "--eval-rows", 4)
    assert outcome.code == 0, outcome.err
    said = [line for line in outcome.err.splitlines() if line.startswith("peft warns: ")]
    for kind, (name,) in patterns.items():
        assert sum(kind in line and name in line for line in said) == 1, outcome.err


def test_an_adapter_whose_norms_overflow_is_not_scored(cli: Cli, dora_run: Path) -> None:
    """All its weights are finite, and its layers answer zero."""
    shutil.copytree(dora_run, "run")
    forget_checksum(Path("run"))
    path = Path("run/adapter/adapter_model.safetensors")
    tensors = load_file(path)
    save_file({key: one * 1e30 if "lora_B" in key else one for key, one in tensors.items()}, path)
    outcome = cli("eval", "run", "--task", "sample-boolq", "--eval-rows", 4)
    assert outcome.code == 2 and "norms of the adapter are not finite" in outcome.err, outcome.err
    assert "_proj" in outcome.err and "predictions" not in [one.name for one in Path("run").iterdir()]


FIRST, SECOND = (["--task", f"sample-{task}", "--eval-rows", 4] for task in ("boolq", "winogrande"))


@pytest.mark.parametrize("method", ["dora", "full"])
def test_other_weights_in_a_run_are_refused(cli: Cli, dora_run: Path, tiny_model: Path, method: str) -> None:
    """Every name, shape and type is as it was."""
    if method == "full":
        flags = ["--model", tiny_model, "--task", "sample-boolq", "--rows", 16, *SMALL]
        assert cli("train", "--method", "full", *flags, "--output", "run").code == 0
    else:
        shutil.copytree(dora_run, "run")
    name = "model/model.safetensors" if method == "full" else "adapter/adapter_model.safetensors"
    assert cli("eval", "run", *FIRST).code == 0
    record = json.loads(Path("run/record.json").read_text())
    trained = record["training"]["weights_checksum"]
    assert record["evaluations"][0]["scored"]["weights_checksum"] == trained
    swap_weights(Path("run", name))
    for target in ("run", Path("run", name).parent):
        outcome = cli("eval", target, *SECOND)
        assert outcome.code == 2 and "not those that its training left" in outcome.err, outcome.err
        assert name.partition("/")[0] in outcome.err and trained in outcome.err and "to do: " in outcome.err
    assert json.loads(Path("run/record.json").read_text()) == record
    # As the message says. A full model is a base model by itself.
    shutil.copytree(Path("run", name).parent, "copy")
    outcome = cli("eval", "copy", *SECOND, "--output", "out")
    assert outcome.code == 0 and "no checksum" not in outcome.err
    if method == "dora":
        forget_checksum(Path("run"))
        outcome = cli("eval", "run", *SECOND)
        assert outcome.code == 2 and "holds evaluations of other weights" in outcome.err
        outcome = cli("eval", "run", *FIRST, "--overwrite")
        assert outcome.code == 0, "there are no other evaluations"
        assert outcome.err.count("no checksum of its weights") == 1


def test_a_report_of_evaluations_of_different_weights_is_refused(cli: Cli, run: Path) -> None:
    for flags in (FIRST, SECOND):
        assert cli("eval", run, *flags).code == 0
    assert cli("report", run, "--output", "report").code == 0
    path = run / "record.json"
    record = json.loads(path.read_text())
    record["evaluations"][1]["scored"]["weights_checksum"] = "xxh3_128:0"
    path.write_text(json.dumps(record))
    outcome = cli("report", run, "--output", "report")
    assert outcome.code == 2 and "different weights" in outcome.err and "xxh3_128:0" in outcome.err


def test_an_adapter_that_was_trained_on_is_not_added_to_its_evaluations(cli: Cli, run: Path) -> None:
    shutil.copytree(run / "adapter", "plain")
    assert cli("eval", "plain", *FIRST, "--output", "out").code == 0
    swap_weights(Path("plain/adapter_model.safetensors"))
    before = Path("out/record.json").read_text()
    outcome = cli("eval", "plain", *SECOND, "--output", "out")
    assert outcome.code == 2 and "holds evaluations of other weights" in outcome.err
    assert Path("out/record.json").read_text() == before
    assert cli("eval", "plain", *FIRST, "--output", "out", "--overwrite").code == 0
    assert cli("eval", "plain", *SECOND, "--output", "out").code == 0


@pytest.mark.parametrize("name", ["other_adapter", "model", "checkpoints/checkpoint-2"])
def test_another_adapter_in_a_run_is_not_the_run_s(cli: Cli, run: Path, name: str) -> None:
    """It is evaluated by itself, and the run's record stays as it is."""
    other = Path(shutil.copytree(run / "adapter", run / name, dirs_exist_ok=True))
    config = json.loads((other / "adapter_config.json").read_text())
    (other / "adapter_config.json").write_text(json.dumps({**config, "lora_alpha": 1}))
    before = (run / "record.json").read_text()
    outcome = cli("eval", other, *FIRST, "--output", "out")
    assert outcome.code == 0, outcome.err
    assert (run / "record.json").read_text() == before
    record = json.loads(Path("out/record.json").read_text())
    assert (record["name"], record["training"]) == (other.name, None)


def test_the_adapter_of_a_run_is_the_run_s_however_it_is_named(
    cli: Cli, run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(run / "adapter")
    assert cli("eval", ".", *FIRST).code == 0
    assert cli("eval", "../adapter/", *SECOND).code == 0
    assert len(json.loads((run / "record.json").read_text())["evaluations"]) == 2


def test_the_base_is_not_scored_in_place_of_an_adapter_that_is_not_there(cli: Cli, run: Path) -> None:
    """A record without its adapter: of an adapter elsewhere, and of a run whose folder is not whole."""
    shutil.copytree(run / "adapter", "plain")
    assert cli("eval", "plain", *FIRST, "--output", "out").code == 0
    outcome = cli("eval", "out", *SECOND)
    assert outcome.code == 2 and "not the adapter" in outcome.err and "(plain)" in outcome.err
    (run / "config.yaml").unlink()
    assert cli("eval", run, *FIRST).code == 0, "its weights are there"
    shutil.rmtree(run / "adapter")
    outcome = cli("eval", run, *SECOND)
    assert outcome.code == 2 and "weights are not there" in outcome.err and "adapter" in outcome.err


def test_a_diverged_run_is_refused(cli: Cli, tiny_model: Path) -> None:
    flags = ["--model", tiny_model, "--task", "sample-boolq", "--rows", 32, *SMALL, "--output", "run"]
    outcome = cli("train", *flags, "--learning-rate", "1e30")
    assert outcome.code == 1 and "training stopped at step" in outcome.err
    stopped = outcome.err[outcome.err.index("training stopped") :].splitlines()[0]
    for command in (["eval", "run", *FIRST], ["report", "run", "--output", "out"]):
        outcome = cli(*command)
        assert outcome.code == 2 and "diverged" in outcome.err and stopped in outcome.err, outcome.err
        assert "--learning-rate" in outcome.err and "--on-nonfinite skip" in outcome.err
    outcome = cli("train", *flags)
    assert outcome.code == 2 and "--overwrite" in outcome.err and "--resume" not in outcome.err
    assert cli("train", *flags, "--overwrite").code == 0
    assert cli("eval", "run", *FIRST).code == 0


def test_the_revision_that_an_adapter_names_is_not_passed_over(cli: Cli, dora_run: Path) -> None:
    """The hub gives its newest one otherwise. A local base has none."""
    shutil.copytree(dora_run / "adapter", "plain")
    path = Path("plain/adapter_config.json")
    config = {**json.loads(path.read_text()), "revision": "v1"}
    flags = ["--task", "sample-boolq", "--eval-rows", 4, "--output", "out"]
    path.write_text(json.dumps(config))
    assert cli("eval", "plain", *flags).code == 0
    shutil.rmtree("out")
    path.write_text(json.dumps({**config, "base_model_name_or_path": "org/model"}))
    outcome = cli("eval", "plain", *flags)
    assert outcome.code == 2 and "org/model, revision v1" in outcome.err and "--model" in outcome.err
    assert not Path("out").exists()


def test_an_ordinary_evaluation_says_what_it_scored_and_warns_of_nothing(cli: Cli, dora_run: Path) -> None:
    shutil.copytree(dora_run, "run")
    outcome = cli("eval", "run", "--task", "sample-boolq", "--eval-rows", 4, "--dtype", "float32")
    assert outcome.code == 0, outcome.err
    assert outcome.err.count("scored:") == 1 and "merging moved a log-probability by at most" in outcome.err
    assert "warns" not in outcome.err
    (entry,) = json.loads(Path("run/record.json").read_text())["evaluations"]
    assert 0 <= entry["scored"]["merge_difference"] < 1e-4


def test_the_text_is_scored_unmerged_and_stands_next_to_the_tasks(cli: Cli, run: Path) -> None:
    """Compared with PEFT's own forward pass in float32; refused a second time."""
    import torch
    from peft import AutoPeftModelForCausalLM
    from transformers import AutoTokenizer

    from doratune.data.text import builtin_text

    outcome = cli("eval", run, "--task", "sample-boolq", "--eval-rows", 4, "--text")
    assert outcome.code == 0, outcome.err
    assert "perplexity" in outcome.out and "Brier" in outcome.out
    record = json.loads((run / "record.json").read_text())
    text, measures = record["text"], record["evaluations"][0]["measures"]
    assert text["scored"]["merged"] is False and record["evaluations"][0]["scored"]["merged"] is True
    model = AutoPeftModelForCausalLM.from_pretrained(run / "adapter", torch_dtype=torch.float32).eval()
    tokenizer = AutoTokenizer.from_pretrained(record["model"]["name"])
    total = tokens = 0
    for paragraph in builtin_text().paragraphs:
        ids = torch.tensor([[tokenizer.bos_token_id, *tokenizer(paragraph).input_ids]])
        with torch.no_grad():
            total += model(input_ids=ids, labels=ids).loss.item() * (ids.shape[1] - 1)
        tokens += ids.shape[1] - 1
    assert text["nll_per_token"] == pytest.approx(total / tokens, rel=1e-5)
    # The measures follow from the scores in the predictions.
    rows = lines(run / "predictions/sample-boolq.jsonl")
    nll = [-torch.log_softmax(torch.tensor(row["scores"]).double(), 0)[row["right"]].item() for row in rows]
    assert measures["nll"] == pytest.approx(sum(nll) / 4, rel=1e-9)
    assert all(("true", "false")[row["right"]] == row["answer"] for row in rows)
    assert record["training"]["cpu_seconds"] > 0
    assert record["training"]["weights_bytes"] == (run / "adapter/adapter_model.safetensors").stat().st_size
    again = cli("eval", run, "--text")
    assert again.code == 2 and "already scored" in again.err
    assert cli("eval", run, "--text", "--overwrite").code == 0
    assert cli("eval", run).code == 2


def test_the_text_alone_takes_nothing_that_is_about_rows(cli: Cli, tiny_model: Path) -> None:
    outcome = cli("eval", tiny_model, "--text", "--eval-rows", 5, "--format", "continuation")
    assert outcome.code == 2 and "--text without --task, --format, --eval-rows" in outcome.err
    outcome = cli("eval", tiny_model, "--text", "--harness", "lm-eval", "--task", "arc_easy")
    assert outcome.code == 2 and "--harness lm-eval --text" in outcome.err
